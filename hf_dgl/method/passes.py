"""The passes of one training step: which parameters each may train, and what the encoders answer in it."""

from __future__ import annotations

import functools
import inspect
from collections import OrderedDict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from .cut import Call, Cut
from .gradient_meter import Measurement
from .modalities import FUSION, Partition
from .outputs import map_tensors, tensors_in
from .traces import random_numbers_kept

MULTIMODAL = "multimodal"


class Pass(NamedTuple):
    """One forward of the model within a training step, and what its loss may train."""

    name: str  # MULTIMODAL, or the modality that is alone
    trains: frozenset[str]  # modalities and/or FUSION; none in a measuring pass (`gradient_meter.py`)
    weight: float | torch.Tensor  # of its loss in the total
    in_value: bool = (
        True  # False: contributes its gradient to the total, but not its value (the value is there already)
    )


def is_whole(share: float | torch.Tensor) -> bool:
    """Whether a share is known to be 1, without waiting for the device."""
    return not isinstance(share, torch.Tensor) and share == 1


def is_nothing(share: float | torch.Tensor) -> bool:
    """Whether a share is known to be 0, without waiting for the device."""
    return not isinstance(share, torch.Tensor) and share == 0


def passes_of_a_step(
    alone: Mapping[str, Any],
    shares: Mapping[str, float | torch.Tensor],
    trainable: Container[str],
    cuts: Mapping[str, Cut],
    unimodal_to_fusion: bool,
    measured: Sequence[str] = (),
) -> list[Pass]:
    """The passes of one step, the multimodal one first.

    Args:
        alone: Modalities with a unimodal pass -> the weight of its loss.
        shares: Present modalities -> share of the multimodal gradient that reaches their encoder; a tensor counts as
            neither 0 nor 1, whatever it is: nobody waits to see.
        trainable: Groups that have parameters to train.
        cuts: Of the modalities; one without counts as reusable.
        unimodal_to_fusion: Whether the unimodal losses train the fusion, too.
        measured: Modalities without a unimodal pass whose gradients are to be measured.
    """
    further = {FUSION} if unimodal_to_fusion else set()
    unimodal = [Pass(name, frozenset({name} | further), weight) for name, weight in alone.items()]
    unimodal += [Pass(name, frozenset(), 1.0) for name in measured if name not in cuts or cuts[name].reuse]
    in_multimodal = {FUSION}
    fractions: dict[float | torch.Tensor, set[str]] = {}
    for name, share in shares.items():
        reuse = name not in cuts or cuts[name].reuse
        # A reused encoder builds its graph here, for whichever losses it gets; one that runs again builds it there.
        if is_whole(share) or (reuse and (not is_nothing(share) or name in alone)):
            in_multimodal.add(name)
        elif not is_nothing(share) and name in trainable:
            fractions.setdefault(share, set()).add(name)
    in_order = sorted(fractions.items(), key=lambda entry: min(entry[1]))
    again = [Pass(MULTIMODAL, frozenset(names), share, in_value=False) for share, names in in_order]
    return [Pass(MULTIMODAL, frozenset(in_multimodal), 1.0), *unimodal, *again]


@dataclass(frozen=True)
class Routing:
    """What holds everywhere in the model during one pass, and again where activation checkpointing recomputes it.

    Attributes:
        trains: The groups whose parameters require gradients (those that the user froze never do); None: as they are.
        moves_statistics: Whether batch norms move their running statistics, and the model what else it keeps in
            buffers (queues, centres, counters): in the multimodal pass only.
        silent: Modules whose output is zero: the fusion's streams of absent modalities.
    """

    model: nn.Module
    partition: Partition
    trains: frozenset[str] | None
    moves_statistics: bool
    silent: Sequence[nn.Module] = ()

    def apply(self) -> list[Callable[[], None]]:
        """Makes it hold; returns what undoes that."""
        undo: list[Callable[[], None]] = []
        if self.trains is not None:
            for parameter, owners in self.partition.parameters():
                trained = not owners.isdisjoint(self.trains) if owners else FUSION in self.trains
                if parameter.requires_grad and not trained:
                    parameter.requires_grad_(False)
                    undo.append(functools.partial(setattr, parameter, "requires_grad", True))
        if not self.moves_statistics:
            for module in self.model.modules():
                if isinstance(module, _NormBase) and module.track_running_stats and module.training:
                    module.track_running_stats = False
                    undo.append(functools.partial(setattr, module, "track_running_stats", True))
            undo += [_on_a_copy(*place) for place in self.partition.moved if not isinstance(place[0], _NormBase)]
        for module in self.silent:
            undo.append(_replace_forward(module, functools.partial(_silenced, module.forward)))
        return undo

    @contextmanager
    def __call__(self) -> Iterator[None]:
        undo = self.apply()
        try:
            yield
        finally:
            for step in reversed(undo):
                step()


def recompute_under(routing: Routing) -> Callable[[], None]:
    """Until the returned function is called, checkpointed regions are bound to `routing` for their recomputation.

    It happens during backward, when the pass is long over. `context_fn` is asked for at forward time, so it binds the
    routing of the pass that builds the region. Models reach it through its default: none passes a `context_fn`.
    """
    defaults = inspect.unwrap(checkpoint).__kwdefaults__
    before = defaults["context_fn"]
    defaults["context_fn"] = lambda: (nullcontext(), routing())
    return functools.partial(defaults.__setitem__, "context_fn", before)


class Run:
    """One call of the model: its passes, and what is remembered of the encoders between them."""

    def __init__(
        self,
        model: nn.Module,
        partition: Partition,
        call: dict[str, Any],
        passes: list[Pass],
        cuts: dict[str, Cut],
        shares: Mapping[str, float | torch.Tensor],
        training: bool,
        measurement: Measurement | None = None,
    ) -> None:
        self.model, self.partition, self.call, self.passes = model, partition, call, passes
        self.cuts, self.shares, self.training = cuts, shares, training
        self.measurement = measurement
        self.current = passes[0]
        self._remembered: dict[Call, Any] = {}
        self._given: dict[Call, list[torch.Size]] = {}  # shapes of what the encoders were called with
        self._counts: dict[str, int] = {}
        self._differ: set[str] = set()  # encoder modules that this pass calls with other shapes
        self._undo: list[Callable[[], None]] = []

    def open(self, step: Pass) -> None:
        """Sets `requires_grad` for a pass, and after the first pass what the encoders return."""
        self.current = step
        self._counts, self._differ = {}, set()
        routing = Routing(
            self.model,
            self.partition,
            trains=step.trains if self.training else None,
            moves_statistics=step is self.passes[0],
            silent=[module for name in self._absent(step) for module in self.partition.silent[name]],
        )
        try:
            self._undo += routing.apply()
            self._undo.append(recompute_under(routing))
            if not step.trains and step is not self.passes[0]:  # a run that is measured goes as one that is not
                self._undo.append(_keep_random_numbers(self.model))
            if step is not self.passes[0]:
                self._replace_encoders(step)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Undoes `open`."""
        while self._undo:
            self._undo.pop()()

    def call_for(self, step: Pass) -> dict[str, Any]:
        """The model's arguments for a pass: without the inputs of omitted modalities."""
        call = self.call
        for name in self._absent(step):
            call = self.partition.modalities[name].without(call)
        return call

    def _absent(self, step: Pass) -> list[str]:
        return [] if step.name == MULTIMODAL else [name for name in self.partition.modalities if name != step.name]

    def hand_over(self, modality: str, path: str, given: Any, output: Any) -> Any:
        """Remembers an encoder's output in the first pass, and gives the fusion its copy (None: the output itself)."""
        if self.current is not self.passes[0]:
            return None
        call = self._next_call(path)
        self._given[call] = _shapes(given)
        cut = self.cuts.get(modality)
        if not self.training or cut is None or not cut.reuse:
            self._remembered[call] = map_tensors(torch.Tensor.detach, output)
            return None
        self._remembered[call] = _attached(output)  # in a container of its own: models write into what they got
        if call not in cut.exits:  # it feeds the encoder's next module, which sees it as it is
            return None
        share = self.shares[modality]
        # A copy in a fresh container: models write into encoder outputs (BLIP-2 into the tensor, CLIP the container).
        seen = map_tensors(lambda tensor: _scale_gradient(tensor, share), output)
        return seen if self.measurement is None else self.measurement.watched(modality, call, False, seen)

    def mismatch(self) -> str:
        """Why the outputs of the multimodal pass could not stand for the encoder in the pass that has just run.

        Calls are matched one by one, so there must be as many in both, of the same shapes (Granite Speech calls its
        token embeddings twice with a sound, and once without). `""` if they match, or the encoder has run itself.
        """
        name = self.current.name
        if name == MULTIMODAL or name not in self.cuts or not self.cuts[name].reuse:
            return ""
        for path in sorted({path for path, _ in self.cuts[name].exits}):
            before = sum(known == path for known, _ in self._given)
            now = self._counts.get(path, -1) + 1
            if now != before:
                return f"{path!r} is called {before} times with all modalities, and {now} times without the others"
        if self._differ:
            return f"{min(self._differ)!r} is called with other shapes without the other modalities"
        return ""

    def _next_call(self, path: str) -> Call:
        self._counts[path] = self._counts.get(path, -1) + 1
        return path, self._counts[path]

    def _replace_encoders(self, step: Pass) -> None:
        """Encoders that need not run in this pass answer from memory."""
        for modality, modules in self.partition.encoders.items():
            absent = self.partition.modalities[modality].absent
            if step.name in (MULTIMODAL, modality):
                if not (modality in self.cuts and self.cuts[modality].reuse):
                    continue  # runs again
                answer: Callable[[Any], Any] = _attached if modality in step.trains else _detached
            elif absent == "omit":
                continue  # is not called
            else:
                answer = absent if callable(absent) else _zeros
            for path, module in modules.items():
                runs = _as_it_is(module)
                from_memory = functools.partial(self._from_memory, modality, path, answer, runs)
                self._undo += [_replace_forward(module, from_memory), _set_hooks(module, OrderedDict(), OrderedDict())]

    def _from_memory(
        self,
        modality: str,
        path: str,
        answer: Callable[[Any], Any],
        runs: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        call = self._next_call(path)
        if self._given.get(call) != _shapes((args, kwargs)):
            if self.current.name in (MULTIMODAL, modality):
                self._differ.add(path)
                return runs(*args, **kwargs)  # lets this pass end; then it is run again (`mismatch`)
            with torch.no_grad():
                return answer(map_tensors(torch.Tensor.detach, runs(*args, **kwargs)))
        if answer is _attached and call not in self.cuts[modality].exits:
            answer = _detached  # its graph is behind the exit's; the model may write into it a second time (Gemma 3n)
        output = answer(self._remembered[call])
        if self.measurement is not None and self.current.name == modality:
            return self.measurement.watched(modality, call, True, output)
        return output


def _on_a_copy(module: nn.Module, name: str) -> Callable[[], None]:
    """Lets a buffer or an attribute be changed in vain; returns what puts it back."""
    table: Any = module._buffers if name in module._buffers else vars(module)
    if name not in table:
        return lambda: None
    before = table[name]
    if isinstance(before, torch.Tensor) and before.grad_fn is None:
        table[name] = before.detach().clone()
    return functools.partial(table.__setitem__, name, before)


def _shapes(given: Any) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors_in(given)]


def _replace_forward(module: nn.Module, forward: Callable[..., Any]) -> Callable[[], None]:
    """Gives one module another forward; returns what undoes it."""
    replaced = module.__dict__.get("forward")  # somebody else's replacement (Accelerate wraps forwards, too)
    module.forward = forward
    if replaced is None:
        return functools.partial(delattr, module, "forward")
    return functools.partial(setattr, module, "forward", replaced)


def _set_hooks(module: nn.Module, before: Any, after: Any) -> Callable[[], None]:
    """Gives one module other forward hooks; returns what undoes it.

    What answers from memory has none: what hooks do to an output is in the remembered one already, and FSDP would
    gather the weights of an encoder that does not run.
    """
    undo = functools.partial(_assign_hooks, module, module._forward_pre_hooks, module._forward_hooks)
    _assign_hooks(module, before, after)
    return undo


def _assign_hooks(module: nn.Module, before: Any, after: Any) -> None:
    module._forward_pre_hooks, module._forward_hooks = before, after


def _as_it_is(module: nn.Module) -> Callable[..., Any]:
    """Calls the module, later, with the forward and the hooks that it has now."""
    forward, before, after = module.forward, module._forward_pre_hooks, module._forward_hooks

    def run(*args: Any, **kwargs: Any) -> Any:
        undo = [_replace_forward(module, forward), _set_hooks(module, before, after)]
        try:
            return module(*args, **kwargs)
        finally:
            for step in reversed(undo):
                step()

    return run


def _silenced(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return _zeros(forward(*args, **kwargs))


class _ScaleGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a constant."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, factor: float | torch.Tensor) -> torch.Tensor:
        ctx.factor = factor.to(tensor) if isinstance(factor, torch.Tensor) else factor
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0] * ctx.factor, None


class _GradientOnly(torch.autograd.Function):
    """Zero, with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, loss: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(loss)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return gradients[0]


def gradient_only(loss: torch.Tensor) -> torch.Tensor:
    """Adds the gradient of a loss to a total, but not its value (whatever it is: NaN, too, stays out)."""
    return _GradientOnly.apply(loss)


def _keep_random_numbers(model: nn.Module) -> Callable[[], None]:
    """Until the returned function is called, nothing that is drawn (dropout) is missing from what comes after."""
    stack = ExitStack()
    stack.enter_context(random_numbers_kept(model))
    return stack.close


def _scale_gradient(tensor: torch.Tensor, share: float | torch.Tensor) -> torch.Tensor:
    if is_nothing(share):
        return tensor.detach().clone()
    return tensor.clone() if is_whole(share) or not tensor.requires_grad else _ScaleGradient.apply(tensor, share)


def _attached(output: Any) -> Any:
    return map_tensors(lambda tensor: tensor, output)


def _detached(output: Any) -> Any:
    return map_tensors(lambda tensor: tensor.detach().clone(), output)


def _zeros(output: Any) -> Any:
    return map_tensors(lambda tensor: torch.zeros_like(tensor) if tensor.is_floating_point() else tensor, output)
