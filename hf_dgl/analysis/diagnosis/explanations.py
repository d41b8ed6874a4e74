"""A diagnosis in words. Every sentence follows from numbers that are in it."""

from __future__ import annotations

from collections.abc import Mapping

from hf_dgl.reports.result_tables import HEADLINES

from .callback import SUPPRESSED, Suppression
from .regime import MIXED, REDUNDANT, SYNERGY, UNCLEAR, USELESS, Regime

_TITLES = {metric: title for titles in HEADLINES.values() for metric, title in titles.items()}
_VERDICTS = ("suppressed", "slightly suppressed", "not suppressed")
_CLEAR = 0.02  # difference of two scores, below which nothing is said
_UNLEARNED = 0.1  # of the labels explained, by which another fusion is ahead

_METHODS = {
    REDUNDANT: (
        "dgl",
        "each modality has a signal of its own, so every encoder can be trained by its own loss, which no other "
        "modality takes away.",
    ),
    MIXED: (
        "joint",
        "full truncation (`dgl`) would keep from the encoders what only the combination tells. Where a modality may "
        "be missing, `adaptive_dgl`: it keeps more of what each tells alone, for a point or two of the fused score.",
    ),
    SYNERGY: (
        "joint",
        "the unimodal losses stay near chance, and under `dgl` the encoders would starve (`adaptive_dgl` is close to "
        "joint training there).",
    ),
    USELESS: (
        "joint",
        "with one useful modality there is nothing to disentangle; a model without the useless one is cheaper still.",
    ),
}
"""Regime -> the method to choose, and why."""


def title_of(metric: str) -> str:
    """How a metric is called."""
    return _TITLES.get(metric, metric or "score")


def gradients(found: Mapping[str, Suppression], unmeasured: Mapping[str, str]) -> list[str]:
    """Whether gradients are suppressed, modality by modality."""
    said = []
    if found:
        of = {verdict: [n for n, entry in found.items() if entry.verdict() == verdict] for verdict in _VERDICTS}
        heads = [f"{_and(names)} {verdict}" for verdict, names in of.items() if names]
        parts = [
            f"{name}: the multimodal loss's gradient at the encoder's output has {entry.first:.2f} of the unimodal "
            f"loss's norm at first, and {entry.last:.2f} ± {entry.error:.2f} in the last third of joint training "
            f"(cosine {entry.cosine:.2f})"
            for name, entry in found.items()
        ]
        said.append(f"**Gradients: {', '.join(heads)}.** {'; '.join(parts)}. Below {SUPPRESSED:g} is suppressed.")
    for name, obstacle in unmeasured.items():
        said.append(
            f"The gradients of {name} were not measured, as its features alone do not stand for it: {obstacle}."
        )
    return said


def dominance(regime: Regime | None) -> list[str]:
    """Which modality the joint model relies on."""
    if regime is None or regime.name == UNCLEAR:
        return []
    missed = ", ".join(f"{name} {share:.2f}" for name, share in regime.explained.missed.items())
    head = "No modality dominates" if regime.dominant is None else f"{regime.dominant} dominates"
    return [f"**{head}.** What joint training loses when a modality's values are swapped between rows: {missed}."]


def recovery(joint: Mapping[str, float], alone: Mapping[str, float], metric: str) -> list[str]:
    """What joint training costs the encoders, by linear probes."""
    sign = -1 if metric == "mae" else 1
    parts = []
    for name in alone:
        lost = sign * (alone[name] - joint[name])
        what = "worse than" if lost > _CLEAR else "better than" if lost < -_CLEAR else "about as good as"
        parts.append(f"{name}'s encoder is {what} trained alone ({joint[name]:.3f} against {alone[name]:.3f})")
    return [f"**Linear probes** ({title_of(metric)}): after joint training {'; '.join(parts)}."] if parts else []


def regime_in_words(regime: Regime | None, own: Regime | None) -> list[str]:
    """The regime, its numbers, and how sure it is.

    Args:
        regime: By the joint run that explains more.
        own: By that of the recipe's own fusion.
    """
    if regime is None or own is None:
        return []
    found, intervals = regime.explained, regime.intervals
    useless = found.useless() if regime.name != UNCLEAR else []
    heads = {
        REDUNDANT: "**The labels look redundant:** adding up what each modality says by itself is enough.",
        MIXED: "**The labels look mixed:** a part can be told from modalities by themselves, and "
        f"{found.interplay:.0%} of what can be told only from their combination.",
        SYNERGY: "**The labels look synergistic:** hardly anything can be told from a modality by itself.",
        USELESS: f"**{_and(useless)} looks useless:** it tells nothing alone, and nothing is lost without it.",
        UNCLEAR: "**Unclear:** no model has learned the task in this short run.",
    }
    alone = ", ".join(f"{name} {_with(share, intervals.get(name))}" for name, share in found.alone.items())
    joint = "joint training" if regime is own else "joint training with a bilinear fusion"
    said = (
        f"{heads[regime.name]} How much of the label each tells (0: no more than guessing, 1: all), trained alone: "
        f"{alone}; their answers added up {_with(found.late, intervals.get('late fusion'))}; {joint} "
        f"{_with(found.joint, intervals.get('joint'))}."
    )
    if useless and regime.name != USELESS:
        said += f" {_and(useless)} looks useless: it tells nothing alone, and nothing is lost without it."
    if regime.name == REDUNDANT and found.late > own.explained.joint + _CLEAR:
        said += (
            f" The recipe's joint training tells less than the answers added up ({own.explained.joint:.2f}): its "
            "encoders have lost something that DGL would keep."
        )
    elif found.joint - own.explained.joint > _UNLEARNED:
        said += (
            f" The recipe's own fusion tells only {own.explained.joint:.2f} after as many steps: it needs longer "
            "training for the rest."
        )
    return [said, _how_sure(regime)]


def _how_sure(regime: Regime) -> str:
    votes = ", ".join(f"{name} {share:.0%}" for name, share in sorted(regime.votes.items(), key=lambda v: -v[1]))
    return (
        f"**How sure:** of resamplings of the {regime.num_rows} validation rows, {votes}. That counts the rows' "
        "chance, not that of the runs: what no run has learned in these steps looks as if it were not there."
    )


def advice(regime: Regime | None) -> tuple[str | None, str]:
    """The method to choose, and why."""
    if regime is None:
        return None, (
            "**Left out:** this checkpoint has a fusion of its own and cannot be taken apart, so there "
            "are no unimodal runs, linear probes or regime. Compare methods instead: `hf-dgl compare "
            "RECIPE --methods joint,dgl`."
        )
    if regime.name == UNCLEAR:
        return None, (
            "**Method: not decided.** Train longer (`--max_steps`), or with another learning rate, and ask again."
        )
    method, why = _METHODS[regime.name]
    share = regime.votes.get(regime.name, 0.0)
    sure = "sure" if share >= 0.95 else "fairly sure" if share >= 0.8 else "not sure: compare it with the runner-up"
    return method, f"**Method: `{method}`** ({sure}): {why}"


def _and(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _with(value: float, interval: tuple[float, float] | None) -> str:
    return f"{value:.2f}" + (f" ({interval[0]:.2f} to {interval[1]:.2f})" if interval else "")
