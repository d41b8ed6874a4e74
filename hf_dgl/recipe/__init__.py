"""One run, written down: a recipe (YAML, command line, keywords), what it assembles, and the run from data to model.

`finetune.finetune` is the whole of `hf-dgl train`. What trains lies in `hf_dgl.training`.
"""

from .assembly import assemble
from .recipe import Recipe, load_recipe

__all__ = ["Recipe", "assemble", "load_recipe"]
