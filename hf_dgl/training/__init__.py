"""[`DGLTrainer`], a `transformers.Trainer`, and what it is made of: arguments, groups, checkpoints, metrics, search.

The method itself is in `hf_dgl.method`; what is uploaded, in `hf_dgl.hub`.
"""

import datasets  # noqa: F401  # before transformers.trainer, which else logs a circular import of huggingface_hub

from .arguments import DGLTrainingArguments
from .search import hp_space, objective
from .trainer import DGLTrainer

__all__ = ["DGLTrainer", "DGLTrainingArguments", "hp_space", "objective"]
