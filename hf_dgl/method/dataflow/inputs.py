"""Which arguments of a model's forward carry which modality, by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hf_dgl.method.modalities import FUSION
from hf_dgl.method.outputs import tensors_in
from hf_dgl.method.variation import STRUCTURE

TARGET = "labels"
"""What is to be predicted: never a modality. The inputs of a decoder are of this kind, too (the answer, shifted)."""

_RULES = (  # the first that fits decides
    (TARGET, r"^(decoder_.*|.*labels?|.*targets?|ans(wers?)?|(start|end)_positions|num_items_in_batch|return_loss)$"),
    (FUSION, r"^(cross_attention_mask|image_attention_mask|(moe_)?mm_token_type_ids|image_text_alignment)$"),  # of two
    ("video", r"video|frame"),
    ("image", r"pixel|image|visual|vision|picture|region|patch|aspect_ratio|spatial_shapes"),
    ("audio", r"audio|speech|sound|wav|spectrogram|input_values|input_features|feature_attention_mask|padding_mask"),
    ("text", r"qformer_|input_ids|text|word|sentence|question|caption|bbox|token"),
)
_OF_THE_SEQUENCE = r"^(attention_mask|position_ids|token_type_ids|inputs_embeds)$"  # text, or the only one there is


WHERE_INPUTS_GO = (
    "In place of `modalities='auto'`: `from hf_dgl.method.dataflow.propose import find_modalities`, and "
    "`modalities=find_modalities(model, batch, inputs=...).modalities`."
)
"""What errors add that ask for `inputs`, which "auto" does not take."""


def group_inputs(
    batch: Mapping[str, Any], declared: Mapping[str, Sequence[str]] | None = None
) -> dict[str, tuple[str, ...]]:
    """The batch's arguments by modality; those of no modality under `labels` and `fusion`.

    Args:
        batch: Keyword arguments of a model's forward. A nested dict is one modality, by its key, or labels.
        declared: Modality -> names of arguments, before all rules. `{"fusion": [...]}` are arguments of no modality.

    Raises:
        ValueError: an argument whose modality its name does not tell, or a declared one that is not in the batch.

    Example:

        >>> ids, pixels = torch.ones(2, 3, dtype=torch.long), torch.rand(2, 3, 8, 8)
        >>> group_inputs({"input_ids": ids, "attention_mask": ids, "pixel_values": pixels, "labels": ids})
        {'labels': ('labels',), 'text': ('input_ids', 'attention_mask'), 'image': ('pixel_values',)}
    """
    owner = {name: modality for modality, names in (declared or {}).items() for name in _listed(names)}
    for name in owner:
        if name not in batch:
            raise ValueError(f"`inputs` names {name!r}, which is not in the batch. It has {list(batch)}.")
    groups: dict[str, list[str]] = {}
    pending = []
    for name, value in batch.items():
        if not tensors_in(value):
            continue
        if name not in owner and re.fullmatch(_OF_THE_SEQUENCE, name):
            pending.append(name)
            continue
        modality = owner.get(name) or _by_name(name, value)
        if modality is None:
            raise ValueError(_unknown(name, batch))
        groups.setdefault(modality, []).append(name)
    if pending:
        groups.setdefault(_of_the_sequence(pending, groups, batch), []).extend(pending)
    return {modality: tuple(name for name in batch if name in names) for modality, names in groups.items()}


def modalities_in(groups: Mapping[str, Any]) -> list[str]:
    """The names of the groups that are modalities."""
    return [name for name in groups if name not in (TARGET, FUSION)]


def structure(groups: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """The inputs that say where something is, of a batch's [`group_inputs`]; never all of a modality."""
    found: set[str] = set()
    for modality, names in groups.items():
        where = {name for name in names if STRUCTURE.search(name)}
        if modality != TARGET and (modality == FUSION or where < set(names)):
            found |= where
    return frozenset(found)


def with_vision(groups: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Images and videos as one modality, for models that read both with one encoder."""
    merged = {name: found for name, found in groups.items() if name not in ("image", "video")}
    return {**merged, "vision": groups["image"] + groups["video"]}


def _by_name(name: str, value: Any) -> str | None:
    by_name = next((modality for modality, pattern in _RULES if re.search(pattern, name)), None)
    if isinstance(value, Mapping) and by_name != TARGET:
        return name
    return FUSION if by_name is None and STRUCTURE.search(name) else by_name


def _of_the_sequence(pending: list[str], groups: Mapping[str, Any], batch: Mapping[str, Any]) -> str:
    """`attention_mask` is the text's where there is text, else that of the only modality (a waveform's)."""
    others = [modality for modality in groups if modality not in (TARGET, FUSION)]
    if "text" in others or "inputs_embeds" in pending or not others:
        return "text"
    if len(others) == 1:
        return others[0]
    raise ValueError(_unknown(pending[0], batch))


def _listed(names: str | Sequence[str]) -> Sequence[str]:
    return (names,) if isinstance(names, str) else names


def _unknown(name: str, batch: Mapping[str, Any]) -> str:
    return (
        f"Which modality is the input {name!r}? Its name does not tell. Say it: "
        f"`inputs={{'image': [{name!r}]}}` (or 'text', 'audio', or a name of yours); "
        f"`inputs={{'{FUSION}': [{name!r}]}}` if it belongs to none, "
        f"`inputs={{'{TARGET}': [{name!r}]}}` if it is what is predicted. The batch has {list(batch)}. "
        f"{WHERE_INPUTS_GO}"
    )
