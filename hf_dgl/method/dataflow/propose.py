"""Where do the modalities of an unknown model live? Proposed from one batch, by watching its data flow.

[`propose`] runs the model once and notes which inputs every parameter meets (`tags.py`). A parameter that
meets one modality only may belong to its encoder; everything else is fusion. In doubt it is fusion:

* Parameters side by side are judged together (the direct ones of a module and those of its leaf children): in a
  cross-attention the query meets only text, key and value only images, and all of them are fusion. An exception is a
  leaf that reads a raw input (an embedding table beside the layers of a language model).
* A `ModuleList` item (a layer) that is given several modalities, or has one parameter that meets them, is fusion.

A modality's `encoder` are the largest modules that the model calls and that see it alone. What feeds them is the
modality's, too, and so is a weight of theirs that the fusion uses again (token embeddings tied to the output layer).
What says where something is (masks, positions, grids) counts as nothing: it is no modality's content. Images and
videos that one encoder reads are one modality, `vision`. [`find_modalities`] goes on to prove the proposal on the
batch, by the checks of `checks.py`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from hf_dgl.method.checks import check
from hf_dgl.method.engine import Engine
from hf_dgl.method.modalities import FUSION, Modality, resolve
from hf_dgl.method.outputs import loss_of

from .inputs import TARGET, WHERE_INPUTS_GO, group_inputs, modalities_in, structure, with_vision
from .proposal import Proposal
from .refusals import (
    refuse_contrastive,
    refuse_too_few,
    refuse_undefined,
    refuse_unmoved,
    refuse_unseparated,
    refuse_untrainable,
)
from .tags import Observation, Seen, evaluated, observe

logger = logging.getLogger(__name__)

_OMITTED = "The model runs on each modality alone: an absent one is left out of the call."
_ZERO = (
    "An absent modality is zeros in the place of its encoder's output; its masks, positions and places stay. In an "
    "attention fusion, leaving its tokens out is better (`hide`; see the README)."
)


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
    refuse_too_few(groups)
    refuse_contrastive(model, batch)
    seen = observe(model, batch, unseen=structure(groups))
    if seen.loss is not None and TARGET not in groups:
        raise ValueError(
            f"{type(model).__name__} computes a loss without labels. Such a loss (contrastive, say) compares the "
            "modalities with each other, and one modality alone has none. Put a head with a supervised loss on its "
            "towers; if one of the inputs is what is predicted, say so: `inputs={'labels': ['...']}`. "
            f"{WHERE_INPUTS_GO}"
        )
    ownership = _Ownership(model, seen, groups)
    if {"image", "video"} <= ownership.exits.keys() and not (ownership.exits["image"] and ownership.exits["video"]):
        groups = with_vision(groups)
        refuse_too_few(groups)
        ownership = _Ownership(model, seen, groups)
    refuse_unseparated(ownership.exits, seen, groups)
    own = {name: ownership.own_of(name) for name in ownership.exits}
    refuse_untrainable(own, seen, model)
    omit = _may_be_omitted(model, batch, groups)
    modalities = {name: _declare(name, groups[name], own[name], ownership, omit) for name in own}
    notes = [
        f"{name} has no parameters of its own: its unimodal loss trains nothing and is skipped."
        for name in own
        if not own[name]
    ]
    notes.append(_OMITTED if omit else _ZERO)
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
        refuse_unmoved(report)
    except Exception as error:  # whatever a model says to a call that it is not made for
        raise ValueError(
            f"The modalities that were found for {type(model).__name__} do not pass their check, so none are used.\n\n"
            f"{proposal}\n\nWhat failed:\n{error}\n{_past_the_encoders(model, batch, proposal)}\n"
            f"Declare them by hand, starting from\n{proposal.as_code()}"
        ) from error
    logger.warning("Modalities found by data flow, and checked:\n%s\n%s", proposal, report)
    return proposal


class _Ownership:
    """Which parameters belong to which modality, and why the others do not."""

    def __init__(self, model: nn.Module, seen: Observation, groups: Mapping[str, Sequence[str]]) -> None:
        self.model, self.seen = model, seen
        self.modalities = modalities_in(groups)
        self.group_of = {name: group for group, found in groups.items() for name in found}
        self.met = {name: self.groups(inputs) for name, inputs in seen.met.items()}
        self.owner: dict[str, str] = {}  # parameters that may belong to a modality
        self.why: dict[str, str] = {}  # the others that meet any input: why not
        self.alone = {name: next(iter(met)) for name, met in self.met.items() if self._one(met)}
        self._judge()
        self.exits = {name: self._exits(name) for name in self.modalities}

    def groups(self, inputs: Any) -> frozenset[str]:
        return frozenset(self.group_of[name] for name in inputs if name in self.group_of)

    def _one(self, groups: frozenset[str]) -> bool:
        return len(groups) == 1 and next(iter(groups)) in self.modalities

    def below(self, path: str) -> list[str]:
        """Names of the parameters below a module that meet any input."""
        return [name for name, met in self.met.items() if met and name.startswith(f"{path}.")]

    def _judge(self) -> None:
        """Fills `owner` and `why`, by the rules on top of this file."""
        for name, met in self.met.items():
            if name in self.alone:
                self.owner[name] = self.alone[name]
            elif met:
                self.why[name] = _reads(met)
        modules = list(self.model.named_modules(remove_duplicate=False))
        for path, module in modules:
            if any(True for _ in module.children()):  # a leaf is judged beside its siblings
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
        together = frozenset[str]().union(*(self.met.get(name, frozenset()) for name in siblings))
        keeps: list[str] = []
        for name, child in module.named_children():
            if any(True for _ in child.children()):
                continue
            parameters = [f"{prefix}{name}.{own}" for own, _ in child.named_parameters(recurse=False)]
            siblings += parameters
            seen = self.seen.modules.get(prefix + name, Seen())
            # Here, not wherever it is used: a table of words may be tied to the output layer.
            here = seen.within or {given for own in parameters for given in self.seen.met.get(own, ())}
            together |= self.groups(here)
            if self._one(self.groups(seen.raw)):
                keeps += parameters
        if not self._one(together):
            self._to_fusion([name for name in siblings if name not in keeps], "beside what reads more than one")

    def _to_fusion(self, names: Sequence[str], why: str) -> None:
        for name in names:
            if self.owner.pop(name, None):
                self.why[name] = why

    def _exits(self, modality: str) -> list[str]:
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

    def own_of(self, modality: str) -> set[str]:
        """The parameters in a modality's exits, those that feed them, and what is learned to stand among its features
        (a line break between tiles; among words it may be anybody's, such as the queries of BLIP-2)."""
        exits = self.exits[modality]
        own = {name for path in exits for name in self.below(path) if self.owner.get(name) == modality}
        own |= {name for path in exits for name in self.tied_in(path)}
        own |= {name for name in self._feeding(exits) if self.alone.get(name) == modality}
        if modality != "text":
            own |= {name for name in self._beside_modules() if self.owner.get(name) == modality}
        return own

    def _beside_modules(self) -> Iterator[str]:
        for path, module in self.model.named_modules():
            if any(True for _ in module.children()):
                for name, _ in module.named_parameters(recurse=False):
                    yield f"{path}.{name}" if path else name

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
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        for name, parameter in parameters.items():
            sizes[name] = 0 if id(parameter) in once else parameter.numel()
            once.add(id(parameter))
        used = self.seen.names(self.seen.output.parameters)
        owners: dict[int, set[str]] = {}  # by identity: a tied weight is owned under all of its names
        for modality, found in own.items():
            for name in found:
                owners.setdefault(id(parameters[name]), set()).add(modality)
        owned = {name: frozenset(owners[id(p)]) for name, p in parameters.items() if id(p) in owners}
        unused = [name for name in sizes if name not in used and name not in owned]
        fusion = [name for name in sizes if name in used and name not in owned]
        reasons = {name: self.why.get(name, "not inside a module that is called") for name in fusion}
        return Proposal(type(self.model).__name__, modalities, owned, fusion, unused, reasons, sizes, notes)


def _declare(name: str, inputs: tuple[str, ...], own: set[str], ownership: _Ownership, omit: bool) -> Modality:
    exits = ownership.exits[name]
    outside = sorted(parameter for parameter in own if not any(parameter.startswith(f"{e}.") for e in exits))
    return Modality(
        inputs=inputs,
        encoder=_with_stars(ownership.model, exits),
        parameters=[f"^{re.escape(parameter)}$" for parameter in outside],
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


def _may_be_omitted(model: nn.Module, batch: Mapping[str, Any], groups: Mapping[str, Sequence[str]]) -> bool:
    """Whether the model itself knows what an absent modality is: it runs on each one alone."""
    names = modalities_in(groups)
    for name in sorted(names, key=lambda name: name == "text"):  # last: language models run on the text
        others = {key for other in names if other != name for key in groups[other]}
        try:
            with evaluated(model):
                loss = loss_of(model.forward(**{key: value for key, value in batch.items() if key not in others}))
        except Exception:  # whatever a model says to a call that it is not made for
            return False
        if (loss is None) != (TARGET not in groups) or not (loss is None or bool(loss.isfinite().all())):
            return False
    return True


def _past_the_encoders(model: nn.Module, batch: Mapping[str, Any], proposal: Proposal) -> str:
    """Which contents reach the fusion by other ways: what an explanation of a leak starts from."""
    encoders = resolve(model, proposal.modalities).encoders
    paths = [path for found in encoders.values() for path in found]
    unseen = structure({name: modality.inputs for name, modality in proposal.modalities.items()})
    past = observe(model, batch, paths, unseen).output.inputs
    read = [name for modality in proposal.modalities.values() for name in modality.inputs if name in past]
    return f"\nThese inputs reach the fusion past the encoders: {', '.join(read)}.\n" if read else ""


def _reads(met: frozenset[str]) -> str:
    if met == {TARGET}:
        return "reads what is predicted"
    return "reads " + " and ".join(sorted(name for name in met if name != FUSION) or ["inputs of no modality"])
