"""What is proposed for a model: the modalities, and an explanation in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_dgl.method.modalities import FUSION, Modality

_LINES = 12


@dataclass(frozen=True)
class Proposal:
    """From [`hf_dgl.method.dataflow.propose.propose`]; `str()` explains it.

    Attributes:
        model: Class name of the model.
        modalities: What [`hf_dgl.disentangle`] takes.
        owners: Parameter name -> its modalities: one, or those of the encoders that share it.
        fusion: Names of the parameters that belong to no modality.
        unused: Names of the parameters that the output does not depend on (those below an encoder come with it).
        reasons: For each parameter of the fusion, why.
        sizes: Parameter name -> number of values (0 for the further names of a tied one).
        notes: What else to know.
    """

    model: str
    modalities: dict[str, Modality]
    owners: dict[str, frozenset[str]]
    fusion: list[str]
    unused: list[str]
    reasons: dict[str, str]
    sizes: dict[str, int]
    notes: list[str]

    def __str__(self) -> str:
        lines = [f"{self.model}, watched on one batch:"]
        for name, modality in self.modalities.items():
            own = [parameter for parameter, owners in self.owners.items() if name in owners]
            lines.append(f"{name} ({', '.join(modality.inputs)}): {self._amount(own)}")
            lines += [f"    {path}" for path in modality.encoder]
            lines += [f"    parameter {_unescaped(pattern)}" for pattern in modality.parameters]
            lines += [f"    without {_unescaped(pattern)}" for pattern in modality.exclude]
        lines.append(f"{FUSION}: {self._amount(self.fusion)}")
        lines += self._tree(self.fusion, self.reasons)
        if self.unused:
            lines.append(f"unused: {self._amount(self.unused)}")
            lines += self._tree(self.unused, dict.fromkeys(self.unused, ""))
        return "\n".join([*lines, *self.notes])

    def as_code(self) -> str:
        """The declaration, to be copied: `modalities = {...}`."""
        lines = ["modalities = {"]
        for name, modality in self.modalities.items():
            lines.append(f"    {name!r}: {{")
            for field in ("inputs", "encoder", "parameters", "exclude"):
                if getattr(modality, field):
                    lines.append(f"        {field!r}: {list(getattr(modality, field))!r},")
            if modality.absent != "zero":
                lines.append(f"        'absent': {modality.absent!r},")
            lines.append("    },")
        return "\n".join([*lines, "}"])

    def _amount(self, names: Sequence[str]) -> str:
        size, total = sum(self.sizes[name] for name in names), sum(self.sizes.values())
        return f"{size:,} parameters ({size / max(total, 1):.1%})"

    def _tree(self, names: Sequence[str], reasons: Mapping[str, str]) -> list[str]:
        """The parameters by the largest modules of which all are in `names` for one reason; the largest first."""
        found = _collapsed("", list(self.sizes), set(names), reasons)
        found.sort(key=lambda branch: -sum(self.sizes[name] for name in branch[1]))
        lines = [
            f"    {path}: {self._amount(below)}" + (f", {reasons[below[0]]}" if reasons[below[0]] else "")
            for path, below in found[:_LINES]
        ]
        rest = [name for _, below in found[_LINES:] for name in below]
        return lines + ([f"    and {len(found) - _LINES} more: {self._amount(rest)}"] if rest else [])


def _collapsed(
    path: str, below: list[str], wanted: set[str], reasons: Mapping[str, str]
) -> list[tuple[str, list[str]]]:
    chosen = [name for name in below if name in wanted]
    if not chosen:
        return []
    if len(chosen) == len(below) and len({reasons[name] for name in chosen}) == 1:
        return [(path or "all", chosen)]
    start = len(path) + 1 if path else 0
    children: dict[str, list[str]] = {}
    for name in below:
        children.setdefault(path[: start - 1] + ("." if path else "") + name[start:].split(".")[0], []).append(name)
    return [branch for child, names in children.items() for branch in _collapsed(child, names, wanted, reasons)]


def _unescaped(pattern: str) -> str:
    return pattern.strip("^$").replace("\\", "")
