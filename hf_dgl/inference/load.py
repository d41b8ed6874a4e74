"""From a folder or a Hub id to the pipeline that fits the model in it."""

from __future__ import annotations

from typing import Any

from .cross_modal_pipeline import CrossModalPipeline


def pipeline(model_id: str, **kwargs: Any) -> CrossModalPipeline:
    """Loads a fine-tuned model, ready to label examples.

    Args:
        model_id: A folder that `hf-dgl train` wrote, or a Hub id.
        **kwargs: Of [`CrossModalPipeline.from_pretrained`]: `device`, `dtype`, `batch_size`, `revision`, ...

    Raises:
        ValueError: if it is a model of another kind, or the device is not there.

    Example:

        >>> import hf_dgl
        >>> hf_dgl.pipeline("outputs/image_text")(image="digit.png", text="an even digit", top_k=3)
    """
    return CrossModalPipeline.from_pretrained(model_id, **kwargs)
