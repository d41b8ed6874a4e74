"""`python -m hf_dgl` is `hf-dgl`: what `accelerate launch -m hf_dgl train RECIPE` needs."""

import sys

from hf_dgl.cli import main

if __name__ == "__main__":
    sys.exit(main())
