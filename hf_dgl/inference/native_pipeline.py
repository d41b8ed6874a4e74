"""Labels from a fine-tuned multimodal checkpoint: the pipeline of `hf_dgl.inference`, with flat batches.

Such a model reads all of its modalities in every row. What each alone would have answered is what evaluation scores:
the others are absent in the sense of the table of architectures.
"""

from __future__ import annotations

from typing import Any

from transformers import Pipeline

from hf_dgl.architectures import modalities_of
from hf_dgl.data import ROW_COLUMN, NativeCollator
from hf_dgl.models.native import TEXT, NativeProcessor

from .cross_modal_pipeline import TASK, CrossModalPipeline


class NativePipeline(CrossModalPipeline):
    """As [`CrossModalPipeline`], for a model with a fusion of its own. `pipeline(model_id)` chooses it.

    Args:
        model: A model of a class that [`hf_dgl.models.native`] knows.
        processor: Its [`NativeProcessor`].
        **kwargs: Of `transformers.Pipeline`.

    Raises:
        ValueError: for a model that writes text: it has no labels to score.

    Example:

        >>> hf_dgl.pipeline("outputs/flava_hateful_memes")(image="meme.png", text="look at this")["label"]
        'not hateful'
    """

    def __init__(self, model: Any, processor: NativeProcessor, **kwargs: Any) -> None:
        if processor.head == TEXT:
            raise ValueError(
                f"{type(model).__name__} writes text and scores no labels: use its `generate`, as transformers "
                "documents it (AutoProcessor and the class load from the same folder)."
            )
        used: Any = processor
        Pipeline.__init__(self, model=model.eval(), processor=used, **{"task": TASK, **kwargs})
        self._cuts = {}
        self.tokenizer = None
        self._names = list(modalities_of(model))

    @classmethod
    def _is_for(cls, config: dict[str, Any]) -> bool:
        return not CrossModalPipeline._is_for(config)

    def _batch(self, rows: list[dict[str, Any]]) -> Any:
        return NativeCollator(self.processor)(rows)

    def _collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        collated = super()._collate(items)
        return {**collated, "given": [self._names for _ in collated["given"]]}

    def _decode(self, row: Any, timeout: float, folder: Any, whole: bool) -> dict[str, list[Any]]:
        values = super()._decode(row, timeout, folder, whole)
        for name in self.modalities:
            if name not in values:
                where = f"Row {row[ROW_COLUMN]}: " if ROW_COLUMN in row else ""
                raise ValueError(
                    f"{where}{type(self.model).__name__} reads all of its modalities {self.modalities} in every row; "
                    f"{name!r} is missing."
                )
        return values
