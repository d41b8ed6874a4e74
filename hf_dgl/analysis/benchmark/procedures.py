"""One training step of a model by each of the procedures that `hf_dgl.analysis.benchmark.benchmark` compares.

- `joint`: the model's forward and backward, without any hook.
- `dgl`: the disentangled model, one forward, one backward.
- `two_backward`: the paper's, which `disentangle` replaces. The unimodal losses' backward goes through fusion and
  encoders; the fusion's `.grad` is set to None; then comes the backward of the multimodal loss, whose fusion was given
  detached features.

`dgl` and `two_backward` leave the same gradients in `.grad`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from hf_dgl.method.disentangle import Disentangled
from hf_dgl.method.modalities import FUSION
from hf_dgl.method.outputs import map_tensors

Step = Callable[[], None]


class Procedures:
    """The procedures on one model and batch.

    Args:
        handle: Of the disentangled model. What is "joint" or the paper's goes past its hooks.
        batch: Arguments of the model's forward, `labels` included.
        autocast: Precision of the forward, as in mixed precision training.

    Raises:
        ValueError: a model whose absent modalities are zeroed rather than left out; a batch without labels.

    Example:

        >>> procedures = Procedures(disentangle(model, modalities_of(model)), batch)
        >>> procedures.two_backward()
    """

    def __init__(self, handle: Disentangled, batch: Mapping[str, Any], autocast: torch.dtype | None = None) -> None:
        declared = handle.partition.modalities
        zeroed = [name for name, modality in declared.items() if modality.absent != "omit"]
        if zeroed:
            raise ValueError(
                f"Got a {type(handle.model).__name__} in which the absence of {zeroed} is not `absent='omit'`. Only "
                "models that can be called without a modality are compared so far, such as those of `encoders`."
            )
        if batch.get("labels") is None:
            raise ValueError(f"Got a batch without 'labels' ({sorted(batch)}): there is no loss to train on.")
        self.handle, self.model, self.batch, self.autocast = handle, handle.model, dict(batch), autocast
        self.device: torch.device = next(self.model.parameters()).device
        self.modalities = [
            name for name, modality in declared.items() if any(batch.get(key) is not None for key in modality.inputs)
        ]
        self._encoders = {
            path: module for name in self.modalities for path, module in handle.partition.encoders[name].items()
        }

    @property
    def encoders(self) -> dict[str, nn.Module]:
        """Modality -> its encoder (the first of its modules, if there are several)."""
        declared = self.handle.partition.encoders
        return {name: next(iter(declared[name].values())) for name in self.modalities}

    @property
    def fusion_parameters(self) -> list[nn.Parameter]:
        named = dict(self.model.named_parameters())
        return [named[name] for name in self.handle.partition.parameter_names(FUSION) if name in named]

    def joint(self) -> None:
        """Plain training with the multimodal loss."""
        self._loss().backward()

    def dgl(self) -> None:
        """Disentangled training as [`disentangle`] does it."""
        with self._precision():
            loss = self.model(**self.batch).loss
        loss.backward()

    def two_backward(self) -> None:
        """Disentangled training as the paper does it. Right for one process without gradient accumulation only."""
        with self._detaching() as features:
            multimodal = self._loss()
        self._unimodal_losses(features).backward()
        for parameter in self.fusion_parameters:
            parameter.grad = None
        multimodal.backward()

    def fusion_parts(self) -> tuple[Step, Step]:
        """The fusion's part of a step on features that are there already: in joint training, and in the cheapest DGL.

        In joint training: forward, gradients of parameters and of features. In DGL: forward and gradients of
        parameters; and for each modality alone forward and gradients of features. What the encoders do is the same in
        both, so `joint` less the first plus the second is what no procedure with DGL's gradients can go below.
        """
        with torch.no_grad(), self._detaching() as features:
            self._loss()

        def leaves() -> dict[str, Any]:
            return map_tensors(lambda t: t.detach().requires_grad_(t.is_floating_point()), features)

        def in_joint() -> None:
            self._loss(leaves()).backward()

        def in_dgl() -> None:
            multimodal = self._loss(features)
            trained = [parameter for parameter in self.fusion_parameters if parameter.requires_grad]
            for parameter in trained:
                parameter.requires_grad_(False)
            unimodal = self._unimodal_losses(leaves())
            for parameter in trained:
                parameter.requires_grad_(True)
            (multimodal + unimodal).backward()

        return in_joint, in_dgl

    def _unimodal_losses(self, features: Mapping[str, Any]) -> Tensor:
        losses = [self.handle.alpha[name] * self._loss(features, alone=name) for name in self.modalities]
        return torch.stack(losses).sum()

    def _loss(self, features: Mapping[str, Any] | None = None, alone: str | None = None) -> Tensor:
        """The model's own loss. With `features` (encoder path -> its output) the encoders answer these and do not
        run; with `alone` only that modality is given."""
        left_out = {
            key
            for name, modality in self.handle.partition.modalities.items()
            if alone not in (None, name)
            for key in modality.inputs
        }
        batch = {key: value for key, value in self.batch.items() if key not in left_out}
        with self._answering(features or {}), self._precision():
            return self.model.forward(**batch).loss  # `forward`: past the hooks of the handle

    def _precision(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.autocast is None else torch.autocast(self.device.type, self.autocast)

    @contextmanager
    def _detaching(self) -> Iterator[dict[str, Any]]:
        """Inside, what encoders return is remembered, and the fusion is given it detached."""
        features: dict[str, Any] = {}

        def hook_of(path: str) -> Callable[..., Any]:
            def hook(module: nn.Module, args: Any, output: Any) -> Any:
                features[path] = output
                return map_tensors(torch.Tensor.detach, output)

            return hook

        hooks = [module.register_forward_hook(hook_of(path)) for path, module in self._encoders.items()]
        try:
            yield features
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def _answering(self, features: Mapping[str, Any]) -> Iterator[None]:
        for path, output in features.items():
            self._encoders[path].forward = lambda *args, answer=output, **kwargs: answer
        try:
            yield
        finally:
            for path in features:
                del self._encoders[path].forward  # the class's own is visible again
