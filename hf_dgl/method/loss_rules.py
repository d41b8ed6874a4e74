"""What a loss may do that is computed outside of the model, once for each pass of a step; else it is an error."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from torch import nn

from .cut import nodes_of, walk

_SHOWN = 5  # names


class Looks:
    """Which steps are examined: the first ones, and then ever fewer, for what a loss begins to do later.

    Example:

        >>> looks = Looks()
        >>> [step for step in range(30) if looks.is_due()]
        [0, 1, 3, 6, 10, 16, 25]
    """

    def __init__(self) -> None:
        self._seen = self._next = 0

    def is_due(self) -> bool:
        """To be asked once per step."""
        due = self._seen >= self._next
        self._seen += 1
        if due:
            self._next = self._seen * 3 // 2
        return due


def refuse_other_leaves(loss: Any, output_nodes: Container[Any], model: nn.Module) -> None:
    """A loss may reach parameters through the model's output only: its pass says which of them it trains.

    Args:
        loss: Of one pass.
        output_nodes: Of what the model returned in it ([`~hf_dgl.method.cut.nodes_of`]).
        model: Whose parameters have names.

    Raises:
        ValueError: it reaches another one.
    """
    for node in walk(nodes_of(loss), stop=output_nodes):
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            names = {id(parameter): name for name, parameter in model.named_parameters()}
            raise ValueError(
                f"The loss reads {names.get(id(leaf), 'a tensor that requires gradients')!r} beside the output of "
                "the model, and would train it in every pass. A penalty on weights belongs to the optimizer "
                "(`weight_decay`), other trainable parts of a loss into the model's forward. What it reads of the "
                "model, it reads from the output that it is given: not from that of all modalities, nor from what a "
                "hook has kept."
            )


def refuse_changes(names: Sequence[str]) -> None:
    """What a loss keeps must not change as often as there are passes.

    Raises:
        ValueError: something has changed.
    """
    if names:
        raise ValueError(
            f"The function that computes the loss changes {_shown(names)}. It is run once for each pass of a step "
            "(all modalities, then each alone), so this would change as often. Change it in a callback, or in the "
            "Trainer's `compute_loss` only `if self.current_pass == 'multimodal':`."
        )


def refuse_kept_by_hooks(names: Sequence[str]) -> None:
    """What a hook keeps of the model's inside is that of the last pass by the time when a loss reads it.

    Raises:
        ValueError: something has changed while the model ran.
    """
    if names:
        raise ValueError(
            f"While the model runs, {_shown(names)} changes, which the function that computes the loss can read (a "
            "hook keeps it?). The model runs once for each pass, and the loss is computed later: it would read that "
            "of the last pass. Let the model's forward return it, or keep it only `if trainer.current_pass == "
            "'multimodal':`."
        )


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
