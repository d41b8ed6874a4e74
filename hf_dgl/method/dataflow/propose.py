"""Where do the modalities of an unknown model live? Proposed from one batch, by watching its data flow.

[`propose`] runs the model once and notes which inputs every parameter meets (`tags.py`). A parameter that
meets one modality only may belong to its encoder; everything else is fusion. In doubt it is fusion:

* Parameters side by side are judged together (the direct ones of a module and those of its leaf children): in a
  cross-attention the query meets only text, key and value only images, and all of them are fusion. An exception is a
  leaf that reads a raw input (an embedding table beside the layers of a language model).
* A `ModuleList` item (a layer) that is given several modalities, or has one parameter that meets them, is fusion.
* A parameter tied between an encoder and the fusion is fusion.

A modality's `encoder` are the largest modules that the model calls and that see it alone; what feeds them is the
modality's, too. [`find_modalities`] goes on to prove the proposal on the batch, by the checks of `checks.py`.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_dgl.method.checks import CheckError, check
from hf_dgl.method.engine import Engine
from hf_dgl.method.modalities import FUSION, Modality
from hf_dgl.method.variation import STRUCTURE

from .inputs import TARGET, WHERE_INPUTS_GO, group_inputs
from .proposal import Proposal
from .refusals import refuse_contrastive, refuse_too_few, refuse_undefined, refuse_unseparated, refuse_untrainable
from .tags import Observation, Seen, observe

logger = logging.getLogger(__name__)


def propose(model: nn.Module, batch: Mapping[str, Any], inputs: Mapping[str, Sequence[str]] | None = None) -> Proposal:
    """Proposes where each modality lives in a model that nothing is known of.

    The model runs a few times on the batch, in eval mode and without gradients; nothing of it is changed. All that it
    computes is watched, which costs time by the operation and not by their size; a small batch is enough.

    Args:
        model: Any module, without wrappers such as DDP (PEFT's are fine).
        batch: Keyword arguments of its forward, with labels, on the model's device.
        inputs: Modality -> names of arguments, where their names do not tell; `{"fusion": [...]}` for arguments of no
            modality, `{"labels": [...]}` for what is predicted.

    Returns:
        A [`Proposal`]. Print it; `.modalities` is what [`disentangle`] takes.

    Raises:
        ValueError: if DGL is undefined here (one modality, a contrastive loss, an encoder without gradients, nothing
            but fusion), with what to do.

    Example:

        >>> proposal = propose(model, batch)
        >>> print(proposal)
        >>> handle = disentangle(model, proposal.modalities)
        >>> handle.check(batch)
    """
    groups = group_inputs(batch, inputs)
    names = [name for name in groups if name not in (TARGET, FUSION)]
    refuse_too_few(names, groups)
    refuse_contrastive(model, batch)
    seen = observe(model, batch)
    if seen.loss is not None and TARGET not in groups:
        raise ValueError(
            f"{type(model).__name__} computes a loss without labels. Such a loss (contrastive, say) compares the "
            "modalities with each other, and one modality alone has none. Put a head with a supervised loss on its "
            "towers; if one of the inputs is what is predicted, say so: `inputs={'labels': ['...']}`. "
            f"{WHERE_INPUTS_GO}"
        )
    ownership = _Ownership(model, seen, groups, names)
    ownership.judge()
    exits = {name: ownership.exits(name) for name in names}
    refuse_unseparated(names, exits, seen, groups)
    own = {name: ownership.own_of(name, exits[name]) for name in names}
    refuse_untrainable(own, seen, model)
    around = observe(model, batch, [path for found in exits.values() for path in found]).output.inputs
    omit = _may_be_omitted(model, batch, groups, names)
    modalities = {name: _declare(name, groups[name], exits[name], own, ownership, omit) for name in names}
    notes = [
        f"{name} has no parameters of its own: its unimodal loss trains nothing and is skipped."
        for name in names
        if not own[name]
    ]
    notes += _around_in_words(modalities, around, omit)
    proposal = ownership.proposal(modalities, own, notes)
    refuse_undefined(model, batch, proposal)
    return proposal


def find_modalities(
    model: nn.Module, batch: Mapping[str, Any] | None, inputs: Mapping[str, Sequence[str]] | None = None
) -> Proposal:
    """[`propose`], then prove it: what `modalities="auto"` does.

    Args:
        model, batch, inputs: As for [`propose`].

    Raises:
        ValueError: as [`propose`], or if the leak check or the exact-gradient check fails on the batch; with the
            proposal, what failed, and what to declare by hand.

    Example:

        >>> handle = disentangle(model, find_modalities(model, batch).modalities)
    """
    if batch is None:
        raise ValueError(
            "`modalities='auto'` watches the model on a batch: give one, `example_batch={...}`, with labels."
        )
    proposal = propose(model, batch, inputs)
    try:
        with Engine(model, proposal.modalities) as engine:
            report = check(engine, batch)
    except (CheckError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"The modalities that were found for {type(model).__name__} do not pass their check, so none are used.\n\n"
            f"{proposal}\n\nWhat failed:\n{error}\n\nDeclare them by hand, starting from\n{proposal.as_code()}"
        ) from error
    logger.warning("Modalities found by data flow, and checked:\n%s\n%s", proposal, report)
    return proposal


class _Ownership:
    """Which parameters belong to which modality, and why the others do not."""

    def __init__(
        self, model: nn.Module, seen: Observation, groups: Mapping[str, Sequence[str]], names: Sequence[str]
    ) -> None:
        self.model, self.seen, self.modalities = model, seen, names
        self.group_of = {name: group for group, found in groups.items() for name in found}
        self.met = {name: self.groups(inputs) for name, inputs in seen.met.items()}
        self.owner: dict[str, str] = {}  # parameters that may belong to a modality
        self.why: dict[str, str] = {}  # the others that meet any input: why not
        self.alone = {name: next(iter(met)) for name, met in self.met.items() if self._one(met)}

    def groups(self, inputs: Any) -> frozenset[str]:
        return frozenset(self.group_of[name] for name in inputs if name in self.group_of)

    def _one(self, groups: frozenset[str]) -> bool:
        return len(groups) == 1 and next(iter(groups)) in self.modalities

    def below(self, path: str) -> list[str]:
        """Names of the parameters below a module that meet any input."""
        return [name for name, met in self.met.items() if met and name.startswith(f"{path}.")]

    def judge(self) -> None:
        """Fills `owner` and `why`, by the rules on top of this file."""
        for name, met in self.met.items():
            if name in self.alone:
                self.owner[name] = self.alone[name]
            elif met:
                self.why[name] = _reads(met)
        modules = list(self.model.named_modules(remove_duplicate=False))
        for path, module in modules:
            self._judge_siblings(path, module)
        for path, module in modules:
            if isinstance(module, nn.ModuleList):
                for item in range(len(module)):
                    layer = self.below(f"{path}.{item}")
                    given = self.groups(self.seen.modules.get(f"{path}.{item}", Seen()).reads)
                    if len(given) > 1 or any(len(self.met[name]) > 1 for name in layer):
                        self._to_fusion(layer, "in a layer that reads more than one")

    def _judge_siblings(self, path: str, module: nn.Module) -> None:
        prefix = f"{path}." if path else ""
        siblings = [prefix + name for name, _ in module.named_parameters(recurse=False)]
        keeps: list[str] = []
        for name, child in module.named_children():
            if any(True for _ in child.children()):
                continue
            parameters = [f"{prefix}{name}.{own}" for own, _ in child.named_parameters(recurse=False)]
            siblings += parameters
            if self._one(self.groups(self.seen.modules.get(prefix + name, Seen()).raw)):
                keeps += parameters
        together = frozenset[str]().union(*(self.met.get(name, frozenset()) for name in siblings))
        if not self._one(together):
            self._to_fusion([name for name in siblings if name not in keeps], "beside what reads more than one")

    def _to_fusion(self, names: Sequence[str], why: str) -> None:
        for name in names:
            if self.owner.pop(name, None):
                self.why[name] = why

    def exits(self, modality: str) -> list[str]:
        """The largest called modules that see this modality alone."""
        found: list[str] = []
        for path, seen in self.seen.modules.items():  # in the order of the calls: what contains comes first
            inside = any(path.startswith(f"{known}.") for known in found)
            if not inside and self._is_exit(path, seen, modality):
                found.append(path)
        return [path for path in found if not self._joins_tokens(path, found)]

    def _joins_tokens(self, path: str, exits: Sequence[str]) -> bool:
        """A lone layer after the encoder that also reads learned tokens (BLIP-2's queries before its Q-Former)."""
        if any(True for _ in self.model.get_submodule(path).children()):
            return False
        feeding = self.seen.names(self.seen.modules[path].behind)
        known = self._feeding([exit_ for exit_ in exits if exit_ != path])
        others = [name for name in feeding - known if not any(name.startswith(f"{exit_}.") for exit_ in exits)]
        return bool(others) and len(others) < len(feeding)

    def _is_exit(self, path: str, seen: Seen, modality: str) -> bool:
        if self.groups(seen.gives) != {modality} or not self.groups(seen.within | seen.reads) <= {modality}:
            return False
        parameters = self.below(path)
        if any(name in self.alone and name not in self.owner for name in parameters):
            return False  # it sees one modality, but a rule made it fusion
        # A table tied to something elsewhere is no parameter of this modality, and yet where the modality enters.
        return bool(parameters) and (bool(seen.raw) or any(name in self.owner for name in parameters))

    def own_of(self, modality: str, exits: Sequence[str]) -> set[str]:
        """The parameters in a modality's exits, and those that feed them."""
        own = {name for path in exits for name in self.below(path) if self.owner.get(name) == modality}
        return own | {name for name in self._feeding(exits) if self.alone.get(name) == modality}

    def _feeding(self, exits: Sequence[str]) -> set[str]:
        """Parameters in front of exits. Learned tokens handed over beside raw inputs may be anybody's: not those."""
        modules = [self.seen.modules[path] for path in exits]
        return {name for seen in modules if not seen.raw for name in self.seen.names(seen.behind)}

    def tied_in(self, path: str) -> list[str]:
        """Parameters below an exit that are used elsewhere, where they meet other things."""
        return [name for name in self.below(path) if name not in self.alone]

    def proposal(
        self,
        modalities: dict[str, Modality],
        own: Mapping[str, set[str]],
        notes: list[str],
    ) -> Proposal:
        sizes, once = {}, set()
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            sizes[name] = 0 if id(parameter) in once else parameter.numel()
            once.add(id(parameter))
        used = self.seen.names(self.seen.output.parameters)
        owned = {name: modality for modality, found in own.items() for name in found}
        paths = [path for modality in modalities.values() for path in modality.encoder]
        for path in paths:
            for name in self.tied_in(path):
                self.why[name] = f"tied: {_reads(self.met[name])}"
        unused = [name for name in sizes if name not in used]
        fusion = [name for name in sizes if name in used and name not in owned]
        reasons = {name: self.why.get(name, "not inside a module that is called") for name in fusion}
        return Proposal(type(self.model).__name__, modalities, owned, fusion, unused, reasons, sizes, notes)


def _declare(
    name: str,
    inputs: tuple[str, ...],
    exits: list[str],
    own: Mapping[str, set[str]],
    ownership: _Ownership,
    omit: bool,
) -> Modality:
    outside = sorted(parameter for parameter in own[name] if not any(parameter.startswith(f"{e}.") for e in exits))
    excluded = sorted({parameter for path in exits for parameter in ownership.tied_in(path)})
    return Modality(
        inputs=inputs,
        encoder=_with_stars(ownership.model, exits),
        parameters=[f"^{re.escape(parameter)}$" for parameter in outside],
        exclude=[f"^{re.escape(parameter)}$" for parameter in excluded],
        absent="omit" if omit else "zero",
    )


def _with_stars(model: nn.Module, paths: Sequence[str]) -> list[str]:
    """`layer.0`, `layer.1`, ... as `layer.*` where all items of a list are meant."""
    short: list[str] = []
    for path in paths:
        parent, _, last = path.rpartition(".")
        items = model.get_submodule(parent) if last.isdigit() else None
        whole = items is not None and all(f"{parent}.{name}" in paths for name, _ in items.named_children())
        name = f"{parent}.*" if whole else path
        if name not in short:
            short.append(name)
    return short


def _may_be_omitted(
    model: nn.Module, batch: Mapping[str, Any], groups: Mapping[str, Sequence[str]], names: Sequence[str]
) -> bool:
    """Whether the model itself knows what an absent modality is: it runs on each one alone."""
    for name in names:
        others = {key for other in names if other != name for key in groups[other]}
        try:
            with torch.no_grad():
                seen = observe(model, {key: value for key, value in batch.items() if key not in others})
        except Exception:  # whatever a model says to a call that it is not made for
            return False
        if (seen.loss is None) != (TARGET not in groups) or not math.isfinite(seen.loss or 0.0):
            return False
    return True


def _around_in_words(modalities: Mapping[str, Modality], around: frozenset[str], omit: bool) -> list[str]:
    if omit:
        return ["The model runs on each modality alone: an absent one is left out of the call."]
    notes = ["An absent modality is zeros in the place of its encoder's output. In an attention fusion, leaving its "
             "tokens out is better (`hide`; see the README)."]  # fmt: skip
    structure = sorted(name for name in around if STRUCTURE.search(name))
    if structure:
        notes.append(f"The fusion reads {', '.join(structure)} itself, also those of an absent modality.")
    read = [name for modality in modalities.values() for name in modality.inputs if name in around]
    content = [name for name in read if name not in structure]
    return notes + [
        f"Input {name!r} reaches the fusion past the encoder"
        + (" (as the places of other modalities' features, and of padding)." if name == "input_ids" else ".")
        for name in content
    ]


def _reads(met: frozenset[str]) -> str:
    if met == {TARGET}:
        return "reads what is predicted"
    return "reads " + " and ".join(sorted(name for name in met if name != FUSION) or ["inputs of no modality"])
