"""Answers of a trained model: a pipeline, files of rows, the demo page, an ONNX graph.

Scores on labelled data are `hf_dgl.recipe.finetune.evaluate`.
"""

from .cross_modal_pipeline import CrossModalPipeline
from .load import pipeline
from .native_pipeline import NativePipeline

__all__ = ["CrossModalPipeline", "NativePipeline", "pipeline"]
