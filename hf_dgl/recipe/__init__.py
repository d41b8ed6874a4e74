"""One run, written down: a recipe (YAML and command line), what it assembles, and the run from data to saved model.

`finetune.finetune` is the whole of `hf-dgl train`; `shipped` finds the recipes that come along. What trains lies in
`hf_dgl.training`. Names are loaded when they are first used: listing recipes needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .assembly import assemble
    from .recipe import Recipe, load_recipe

__all__ = ["Recipe", "assemble", "load_recipe"]

_HOMES = {"Recipe": "recipe", "assemble": "assembly", "load_recipe": "recipe"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
