"""What DGL makes of a model: its tree by modality and fusion, sizes, cut points, tied weights; as data."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from hf_dgl.method.checks import CheckError
from hf_dgl.method.disentangle import Disentangled
from hf_dgl.method.modalities import FUSION


@dataclass
class Node:
    """A part of a model.

    Attributes:
        path: As in `model.named_modules()`; of the first of them where alike neighbours are counted as one.
        kind: Class name; `Parameter` for a parameter that sits directly in a module with parts.
        repeats: How many alike parts stand in a row (the layers of a list).
        sizes: Modality or `fusion` (`image+text` if tied) -> number of parameters; a tied one is counted at its first
            place.
        trainable: Number of parameters that are trained.
        cut: Modality whose encoder this is: here its features are handed over.
        parts: Shown only where they differ in what they belong to.
    """

    path: str
    kind: str
    sizes: dict[str, int]
    trainable: int
    repeats: int = 1
    cut: str | None = None
    parts: list[Node] = field(default_factory=list)

    @property
    def group(self) -> str | None:
        """What all of it belongs to; None if it is mixed or has no parameters."""
        return next(iter(self.sizes)) if len(self.sizes) == 1 else None

    @property
    def label(self) -> str:
        """The last part of the path; `0-11` for alike neighbours."""
        name = self.path.rsplit(".", 1)[-1]
        return f"{name}-{int(name) + self.repeats - 1}" if self.repeats > 1 else name


@dataclass
class Group:
    """A modality, or the fusion, in numbers.

    Attributes:
        parameters, trainable: How many; a parameter tied between encoders counts for each.
        share: Of all parameters of the model, 0 to 1.
        encoder: Paths of the modules whose outputs are the modality's features (none: the fusion).
        kind: What that is: `ViTModel (google/vit-base-patch16-224)`; of several modules their names.
        cut: Whether the encoder's output is reused or the encoder runs again, and why; `""` if not known yet.
        trained_by: Losses whose gradient reaches it: `multimodal` and `unimodal`, or one of them.
    """

    parameters: int
    trainable: int
    share: float
    encoder: list[str] = field(default_factory=list)
    kind: str = ""
    cut: str = ""
    trained_by: list[str] = field(default_factory=list)


@dataclass
class Inspection:
    """What [`inspect_model`] found.

    Attributes:
        model_class: Of the model below wrappers.
        groups: Modalities and `fusion` -> numbers.
        tree: The model.
        tied: Groups of names of one and the same parameter.
        checks: The report of [`hf_dgl.method.checks.check`], or why it failed; None if it was not asked for.
        passed: Whether the checks passed; None likewise.
        absent, method, note: What the table of architectures says of the model; "" if it is not in it.
    """

    model_class: str
    groups: dict[str, Group]
    tree: Node
    tied: list[list[str]]
    checks: str | None = None
    passed: bool | None = None
    absent: str = ""
    method: str = ""
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def inspect_model(handle: Disentangled, batch: Mapping[str, Any] | None = None) -> Inspection:
    """Describes a model as a handle of [`hf_dgl.disentangle`] sees it.

    Args:
        handle: Attached to the model; meta tensors are fine without `batch`.
        batch: Arguments of the model, with labels: both checks are run on it, and they show which encoders are reused.

    Example:

        >>> print(inspect_model(disentangle(model, modalities_of(model))).groups["fusion"].share)
        0.43
    """
    checks = passed = None
    if batch is not None:
        try:
            checks, passed = str(handle.check(batch)), True
        except CheckError as error:
            checks, passed = str(error), False
    owners = {id(p): _group_name(handle.partition.owners[name]) for name, p in _all_names(handle.model)}
    tree = _node("", handle.model, owners, {}, _encoders(handle))
    return Inspection(type(handle.model).__name__, _groups(handle), tree, _tied(handle.model), checks, passed)


def _all_names(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(model.named_parameters(remove_duplicate=False))


def _encoders(handle: Disentangled) -> dict[str, str]:
    return {path: name for name, found in handle.partition.encoders.items() for path in found}


def _group_name(owners: frozenset[str]) -> str:
    return "+".join(sorted(owners)) if owners else FUSION


def _groups(handle: Disentangled) -> dict[str, Group]:
    by_name = dict(_all_names(handle.model))
    total = sum(p.numel() for p in handle.model.parameters())
    groups = {}
    for name in handle.partition.groups:
        own = {id(by_name[key]): by_name[key] for key in handle.partition.parameter_names(name)}.values()
        size = sum(p.numel() for p in own)
        group = Group(size, sum(p.numel() for p in own if p.requires_grad), size / max(total, 1))
        group.trained_by = _losses_of(handle, name)
        if name != FUSION:
            group.encoder = list(handle.partition.modalities[name].encoder)
            group.kind = _kind(handle, name)
            cut = handle.cuts.get(name)
            if cut is not None:
                group.cut = "output reused" if cut.reuse else f"runs again in its own pass: {cut.obstacle}"
        groups[name] = group
    return groups


def _kind(handle: Disentangled, name: str) -> str:
    paths = handle.partition.modalities[name].encoder
    if len(paths) != 1 or "*" in paths[0]:
        return ", ".join(dict.fromkeys(path.removesuffix(".*").rsplit(".", 1)[-1] for path in paths))
    (place,) = handle.partition.encoders[name]  # below PEFT's wrappers, where there are any
    encoder = handle.model.get_submodule(place)
    source = str(getattr(getattr(encoder, "config", None), "name_or_path", "") or "").rstrip("/")
    checkpoint = os.path.basename(source) if os.path.isabs(source) else source  # this machine's folders are private
    return type(encoder).__name__ + (f" ({checkpoint})" if checkpoint else "")


def _losses_of(handle: Disentangled, group: str) -> list[str]:
    if group == FUSION:
        multimodal, unimodal = True, handle.unimodal_to_fusion
    else:
        multimodal, unimodal = handle.multimodal_to_encoders[group] > 0, handle.trains_alone(group)
    return [name for name, reaches in (("multimodal", multimodal), ("unimodal", unimodal)) if reaches]


def _tied(model: nn.Module) -> list[list[str]]:
    names: dict[int, list[str]] = {}
    for name, parameter in _all_names(model):
        names.setdefault(id(parameter), []).append(name)
    return [found for found in names.values() if len(found) > 1]


def _node(
    path: str, module: nn.Module, owners: Mapping[int, str], seen: dict[int, bool], encoders: Mapping[str, str]
) -> Node:
    node = Node(path, type(module).__name__, {}, 0, cut=encoders.get(path))
    for name, parameter in module._parameters.items():
        if parameter is not None and id(parameter) not in seen:
            seen[id(parameter)] = True
            group, trainable = owners[id(parameter)], parameter.numel() * parameter.requires_grad
            part = Node(_join(path, name), "Parameter", {group: parameter.numel()}, trainable)
            _add(node, part)
    for name, child in module.named_children():
        _add(node, _node(_join(path, name), child, owners, seen, encoders))
    if node.group is not None and not any(_cuts_below(node)):
        node.parts = []  # all of one kind: nothing to tell apart
    else:
        node.parts = _alike_as_one([part for part in node.parts if part.sizes])
    return node


def _add(node: Node, part: Node) -> None:
    node.parts.append(part)
    node.trainable += part.trainable
    for group, size in part.sizes.items():
        node.sizes[group] = node.sizes.get(group, 0) + size


def _cuts_below(node: Node) -> Iterator[bool]:
    for part in node.parts:
        yield part.cut is not None
        yield from _cuts_below(part)


def _alike_as_one(parts: list[Node]) -> list[Node]:
    """The layers of a list, where neighbours look alike, become one node."""
    merged: list[Node] = []
    for part in parts:
        last = merged[-1] if merged else None
        if last is not None and part.label.isdigit() and _shape(last) == _shape(part):
            last.repeats += 1
            last.trainable += part.trainable
            last.sizes = {group: size + part.sizes[group] for group, size in last.sizes.items()}
        else:
            merged.append(part)
    return merged


def _shape(node: Node) -> Any:
    sizes = sorted((group, size // node.repeats) for group, size in node.sizes.items())
    return node.kind, node.cut, node.trainable // node.repeats, sizes, [_shape(part) for part in node.parts]


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def count(number: int) -> str:
    """A number of parameters, as it is said.

    Example:

        >>> count(86_389_248)
        '86.4M'
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)
