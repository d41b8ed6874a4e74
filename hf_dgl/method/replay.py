"""A loss that is computed outside of the model, once for each pass: the model runs once and is then played back.

Whatever computes a loss from `model(...)` is run as often as a step has passes. In the first run the model is called,
with all passes inside; it answers with what it returned for all modalities. In each further run nothing is computed by
the model: it answers with what it returned in that pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from .cut import nodes_of
from .disentangle import Disentangled
from .loss_rules import refuse_changes, refuse_kept_by_hooks, refuse_other_leaves
from .loss_state import changed
from .outputs import first_prediction, tensors_in
from .passes import MULTIMODAL, Pass
from .traces import RandomNumbers

_T = TypeVar("_T")


class StandIn:
    """Looks like a model, and answers when it is called.

    Args:
        model: What it looks like.
        answer: Is given the arguments of a call.
    """

    def __init__(self, model: nn.Module, answer: Callable[[tuple[Any, ...], dict[str, Any]], Any]) -> None:
        object.__setattr__(self, "_model", model)
        object.__setattr__(self, "_answer", answer)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._answer(args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._model, name, value)

    @property  # type: ignore[misc]  # `object` lets it be set
    def __class__(self) -> Any:  # for `isinstance`
        return type(self._model)


class Replay:
    """One batch, whose loss is computed once for each pass.

    Args:
        handle: Of the model.
        model: What is to be called: the model, or its wrapper (DDP).
        batch: Of which each run gets a copy (of the containers): what one takes out is there for the next.
        examine: Whether to make sure that the runs are alike and keep nothing. It waits for the device.
        keeps: Gives what the function that computes the loss can reach ([`~hf_dgl.method.loss_state.state_of`]).

    Attributes:
        passes: Of the step, after the first call of the model.
        outputs: What the model returned in each.
        predictions: The first entry of each that is no loss, if it is a tensor.
        called: The model.
        model: What the runs call in its place.

    Example:

        >>> replay = Replay(handle, model, batch)
        >>> losses = replay.run(lambda model, batch: criterion(model(**batch).logits, batch["labels"]))
    """

    def __init__(
        self,
        handle: Disentangled,
        model: nn.Module,
        batch: Mapping[str, Any],
        examine: bool = False,
        keeps: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.passes: list[Pass] = []
        self.outputs: list[Any] = []
        self.predictions: list[torch.Tensor | None] = []
        self.model = StandIn(model, self._answer)
        self._handle, self.called, self._batch, self._examine = handle, model, batch, examine
        self._keeps = keeps if examine else dict
        self._index = self._num_calls = 0
        self._first_call: Any = None
        self._nodes: list[set[Any]] = []
        self._after_the_call: RandomNumbers | None = None

    @property
    def current(self) -> str:
        """The name of the pass whose loss is computed or, while the model runs, of the one that runs."""
        running = self._handle.running_pass
        return running or (self.passes[self._index].name if self._index else MULTIMODAL)

    def run(self, compute: Callable[[Any, Any], _T]) -> list[_T]:
        """`compute(model, batch)` for each pass, in the order of `passes`.

        The random numbers that it draws are the same in each run, and afterwards as if there had been the first only.

        Raises:
            ValueError: it does not call the model exactly once, the runs are not alike, or it changes what it keeps.
        """
        before = RandomNumbers(self._handle.model)
        results = [self._one(compute, 0)]
        if len(self.passes) > 1:
            after, versions = RandomNumbers(self._handle.model), self._versions()
            kept = self._keeps()
            for index in range(1, len(self.passes)):
                before.restore()
                results.append(self._one(compute, index))
            after.restore()
            self._index = 0
            refuse_changes(changed(kept, self._keeps()))
            if self._examine and versions != self._versions():
                raise ValueError(
                    "The function that computes the loss writes into a tensor of its inputs, and is run once for each "
                    "pass. Write `labels = inputs['labels'] - 1` in place of `inputs['labels'] -= 1`."
                )
        return results

    def _one(self, compute: Callable[[Any, Any], _T], index: int) -> _T:
        self._index, self._num_calls = index, 0
        result = compute(self.model, fresh(self._batch))
        if self._num_calls != 1:
            raise ValueError(
                "The function that computes the loss (`compute_loss`) must call the model that it is given exactly "
                f"once: it did {self._num_calls} times. It is run once for each pass of a step, and the model answers "
                "with the output of that pass. A second forward (R-Drop, adversarial training) or another way to the "
                "model is not routed; with `method: joint` everything is as in `transformers.Trainer`."
            )
        if len(self.passes) > 1:
            loss = result[0] if isinstance(result, tuple) else result
            refuse_other_leaves(loss, self._nodes[index], self._handle.model)
        return result

    def _answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._num_calls += 1
        if self._num_calls > 1:
            return self.outputs[self._index]  # `_one` refuses it, whatever comes of it
        if self._index == 0:
            self._call(args, kwargs)
        else:
            assert self._after_the_call is not None
            self._after_the_call.restore()
            if self._examine and not _same((args, kwargs), self._first_call):
                raise ValueError(
                    "The function that computes the loss calls the model with other arguments each time that it is "
                    "run (it is run once for each pass). Draw random numbers from the global generators of torch, "
                    "NumPy or Python, which are put back before each run, or prepare the batch in the data collator."
                )
        return self.outputs[self._index]

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        kept: dict[str, Any] = {}
        with self._handle.outputs_one_by_one(after_the_first=lambda: kept.update(self._keeps())):
            output = self.called(*args, **kwargs)
        self.passes = self._handle.passes or [Pass(MULTIMODAL, frozenset(), 1.0)]
        self.outputs = output if self._handle.passes else [output]
        if len(self.passes) > 1:
            refuse_kept_by_hooks(changed(kept, self._keeps()))
        # Read at once: whoever computes the loss may change what it is given.
        self.predictions = [_kept(first_prediction(output)) for output in self.outputs]
        self._nodes = [set(nodes_of(output)) for output in self.outputs]
        self._after_the_call = RandomNumbers(self._handle.model)
        self._first_call = (args, kwargs) if self._examine else None

    def _versions(self) -> list[int]:
        """How often each tensor of the batch was written into."""
        return [tensor._version for tensor in _tensors(self._batch)] if self._examine else []


def _kept(prediction: torch.Tensor | None) -> torch.Tensor | None:
    """Also if it is written into (`logits.div_(temperature)`); only `[B, C]` is measured, other logits can be huge."""
    is_measured = prediction is not None and prediction.dim() == 2
    return prediction.detach().clone() if is_measured else prediction  # type: ignore[union-attr]


def fresh(tree: Any) -> Any:
    """The same values in new containers."""
    if isinstance(tree, Mapping):
        return type(tree)({key: fresh(value) for key, value in tree.items()})  # type: ignore[call-arg]
    return type(tree)(fresh(value) for value in tree) if type(tree) in (list, tuple) else tree


def _tensors(tree: Any) -> list[torch.Tensor]:
    """Of a batch: mappings of any class, which `tensors_in` does not know all."""
    if isinstance(tree, Mapping):
        return [tensor for value in tree.values() for tensor in _tensors(value)]
    return tensors_in(tree)


def _same(first: Any, second: Any) -> bool:
    if first is second:
        return True
    if isinstance(first, torch.Tensor):
        alike = isinstance(second, torch.Tensor) and first.shape == second.shape and first.dtype == second.dtype
        return alike and bool(torch.equal(first.nan_to_num(), second.nan_to_num()))
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(_same, first, second))
    return type(first) is type(second)
