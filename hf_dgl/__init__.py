"""Fine-tune multimodal transformers with disentangled gradient learning (DGL)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# The function bears its module's name, so it is bound at once; everything else is loaded when it is first used.
from .disentangle import Disentangled, disentangle
from .modalities import Modality

if TYPE_CHECKING:
    from .diagnostics import DiagnoseGradients
    from .inference import CrossModalPipeline, pipeline
    from .models import (
        CrossModalConfig,
        CrossModalForSequenceClassification,
        CrossModalModel,
        CrossModalProcessor,
        FlavaForSequenceClassification,
    )
    from .recipe import Recipe, load_recipe
    from .trainer import DGLTrainer
    from .training_args import DGLTrainingArguments

__version__ = "0.1.0"
__all__ = [
    "CrossModalConfig",
    "CrossModalForSequenceClassification",
    "CrossModalModel",
    "CrossModalPipeline",
    "CrossModalProcessor",
    "DGLTrainer",
    "DGLTrainingArguments",
    "DiagnoseGradients",
    "Disentangled",
    "FlavaForSequenceClassification",
    "Modality",
    "Recipe",
    "disentangle",
    "load_recipe",
    "pipeline",
]

_HOMES = {
    "CrossModalConfig": "models",
    "CrossModalForSequenceClassification": "models",
    "CrossModalModel": "models",
    "CrossModalPipeline": "inference",
    "CrossModalProcessor": "models",
    "DGLTrainer": "trainer",
    "DGLTrainingArguments": "training_args",
    "DiagnoseGradients": "diagnostics",
    "FlavaForSequenceClassification": "models",
    "Recipe": "recipe",
    "load_recipe": "recipe",
    "pipeline": "inference",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
