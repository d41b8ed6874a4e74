"""Fine-tune multimodal transformers with disentangled gradient learning (DGL).

Importing this costs nothing: names are loaded when they are first used. Once Transformers' Auto classes are
loaded, before or after, they know the model that is built here.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .analysis.diagnosis import DiagnoseGradients
    from .architectures import disentangle
    from .inference import CrossModalPipeline, pipeline
    from .method import Disentangled, Modality
    from .models import (
        CrossModalConfig,
        CrossModalForSequenceClassification,
        CrossModalModel,
        CrossModalProcessor,
        FlavaForSequenceClassification,
    )
    from .recipe import Recipe, load_recipe
    from .recipe.finetune import finetune
    from .training import DGLTrainer, DGLTrainingArguments

__version__ = "0.2.0"

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
    "finetune",
    "load_recipe",
    "pipeline",
]

_HOMES = {
    "CrossModalConfig": "models",
    "CrossModalForSequenceClassification": "models",
    "CrossModalModel": "models",
    "CrossModalPipeline": "inference",
    "CrossModalProcessor": "models",
    "DGLTrainer": "training",
    "DGLTrainingArguments": "training",
    "DiagnoseGradients": "analysis.diagnosis",
    "Disentangled": "method",
    "FlavaForSequenceClassification": "models",
    "Modality": "method",
    "Recipe": "recipe",
    "disentangle": "architectures",
    "finetune": "recipe.finetune",
    "load_recipe": "recipe",
    "pipeline": "inference",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__


# ---- Transformers' Auto classes know our model ----------------------------------------------------------------------

_AUTO_CLASSES = "transformers.models.auto.configuration_auto"


class _AfterTransformers(MetaPathFinder, Loader):
    """Loads `hf_dgl.models`, which registers our model, as soon as Transformers has loaded its Auto classes.

    Not in the middle of that: only when the outermost module of Transformers that is being imported is done.
    """

    def __init__(self) -> None:
        self._loaders: dict[str, Any] = {}
        self._depth = 0

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not fullname.startswith("transformers."):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            self._loaders[fullname], spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loaders[spec.name].create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        loader = module.__loader__ = module.__spec__.loader = self._loaders.pop(module.__spec__.name)
        self._depth += 1
        try:
            loader.exec_module(module)
        finally:
            self._depth -= 1
        if self._depth == 0 and _AUTO_CLASSES in sys.modules and self in sys.meta_path:
            sys.meta_path.remove(self)
            importlib.import_module("hf_dgl.models")


if _AUTO_CLASSES in sys.modules:
    importlib.import_module("hf_dgl.models")
else:
    sys.meta_path.insert(0, _AfterTransformers())
