"""A fine-tuned model is loaded whole or not at all: upstream gives weights that its files lack new random values."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .finding import nearest_model
from .parts import named


def load_whole(
    model_class: Any, source: str | os.PathLike[str], is_ours: bool, new: tuple[str, ...] = (), **kwargs: Any
) -> Any:
    """`from_pretrained` of a model that was fine-tuned: every weight comes from its files.

    Args:
        model_class: Of the model.
        source: Folder or Hub id.
        is_ours: A `CrossModal...` model, whose files hold no weights that it does not have, either.
        new: How the names of those begin that may be new all the same: a head for other labels.
        **kwargs: Of `from_pretrained`.

    Raises:
        ValueError: a weight is missing, of another shape, or (in a model of ours) too many.

    Example:

        >>> load_whole(CrossModalForSequenceClassification, "outputs/image_text", is_ours=True)
    """
    model, found = model_class.from_pretrained(
        source, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs
    )
    reshaped = sorted(name for name, *_ in found["mismatched_keys"] if not name.startswith(new))
    missing = sorted(name for name in {*found["missing_keys"]} - {*reshaped} if not name.startswith(new))
    superfluous = sorted(found["unexpected_keys"]) if is_ours else []
    for names, what in ((reshaped, "of another shape"), (missing, "missing"), (superfluous, "not of this model")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ValueError(
                f"Cannot load the model {os.fspath(source)!r}: its config.json and its weights do not belong together "
                f"({names[0]}{more}: {what}). Copy or download all of its files again, or load one of its checkpoints."
            )
    return model


@contextmanager
def told_if_damaged(source: str | os.PathLike[str]) -> Iterator[None]:
    """Says in one sentence which fine-tuned model cannot be loaded, and why.

    Raises:
        ValueError, OSError: in place of what `safetensors`, torch, PEFT and Transformers raise.

    Example:

        >>> with told_if_damaged("outputs/image_text"):
        ...     load_model("outputs/image_text")
    """
    try:
        with named("model", source), warnings.catch_warnings():
            warnings.filterwarnings("error", message="Found missing adapter keys")  # PEFT would go on without them
            yield
    except OSError as error:
        near = nearest_model(os.fspath(source))
        if near in str(error):
            raise
        raise OSError(f"{str(error).rstrip('.')}{near}") from error
