"""`method: unimodal`: a recipe with one encoder only, as if the other modalities had never been there.

What comes out is a plain model with one encoder, its fusion layers without anything to attend to, and a head: what the
encoder can learn by itself, which is what an encoder that was trained in company is measured against.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hf_dgl.method.methods import UNIMODAL
from hf_dgl.method.modalities import did_you_mean

_NOT_BY_MODALITY = ("dataset_name", "peft")
"""Mappings of a recipe whose keys are no modalities."""


def encoders_of(values: Mapping[str, Any]) -> list[str]:
    """The modalities of a recipe.

    Raises:
        ValueError: for a checkpoint with a fusion of its own.
    """
    encoders = values.get("encoders")
    if not isinstance(encoders, Mapping):
        raise ValueError(
            "`unimodal` trains each encoder without the others, which a checkpoint with a fusion of its own "
            "(`model_name_or_path`) cannot be taken apart for. Use another method (in a comparison: leave `unimodal` "
            "out of --methods), or name the checkpoint's encoders under `encoders`, where they can be loaded apart."
        )
    return list(encoders)


def with_one_modality(values: Mapping[str, Any]) -> dict[str, Any]:
    """Takes the other modalities out of a recipe, wherever they are named.

    Args:
        values: Key -> value of a recipe. Unchanged unless its `method` is `unimodal` and it has a `modality`.

    Returns:
        The values of the recipe that is run: the other encoders are gone, and their entries in `column_mapping`,
        `alpha`, `encoder_learning_rate`, ...; `freeze` and `metric_for_best_model` no longer name them.

    Raises:
        ValueError: an unknown modality (with the nearest one), or a checkpoint with a fusion of its own.

    Example:

        >>> with_one_modality({"method": "unimodal", "modality": "image", "encoders": {"image": "a", "text": "b"}})
        {'method': 'unimodal', 'modality': 'image', 'encoders': {'image': 'a'}}
    """
    modality = values.get("modality")
    if values.get("method") != UNIMODAL or modality is None:
        return dict(values)
    known = encoders_of(values)
    if modality not in known:
        raise ValueError(
            f"`modality` names an unknown modality {modality!r}{did_you_mean(str(modality), known)} Encoders: {known}."
        )
    others = set(known) - {modality}
    kept = {key: _without(others, value) if key not in _NOT_BY_MODALITY else value for key, value in values.items()}
    if isinstance(kept.get("freeze"), list):
        kept["freeze"] = [part for part in kept["freeze"] if part not in others] or None
    metric = str(kept.get("metric_for_best_model") or "")
    for name in others:
        if metric.endswith(f"_{name}"):  # the accuracy of another modality: that of the only one is the model's
            kept["metric_for_best_model"] = metric.removesuffix(f"_{name}")
    return kept


def _without(names: set[str], value: Any) -> Any:
    return {key: entry for key, entry in value.items() if key not in names} if isinstance(value, Mapping) else value
