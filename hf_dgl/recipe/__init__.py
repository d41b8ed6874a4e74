"""One run, written down: a recipe (YAML and command line), what it assembles, and the run from data to saved model.

`finetune.finetune` is the whole of `hf-dgl train`. What trains lies in `hf_dgl.training`.
"""

from .assembly import assemble
from .recipe import Recipe, load_recipe

__all__ = ["Recipe", "assemble", "load_recipe"]
