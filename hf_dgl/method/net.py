"""The net below every way to a loss: has the unimodal loss of each modality reached its encoder?

A loss that is computed from the multimodal output alone (`model(**batch).logits` in one's own loop) leaves the
encoders without a gradient, and nothing else shows it. So the first backward is watched, by hooks on the outputs of
the passes and of the encoders; what has been seen once is not watched again, and costs nothing.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from .modalities import Partition
from .outputs import tensors_in

logger = logging.getLogger(__name__)

_PATIENCE = 100  # forwards in which a gate that is closed at first (Mllama's, IDEFICS's) may open


class GradientNet:
    """Watches the gradients of unimodal losses until each has been seen.

    Args:
        partition: Of the model.
    """

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self._settled: set[str] = set()
        self._open: set[str] = set()  # modalities whose unimodal pass is watched at present
        self._backward = False  # whether there was one since
        self._at_output: dict[str, torch.Tensor] = {}  # whether the gradient there was other than zero
        self._at_encoder: dict[str, torch.Tensor] = {}
        self._closed_for: Counter[str] = Counter()
        self._gates: list[str] = []

    def begin(self, modalities: Iterable[str]) -> None:
        """Watches the next forward and its backward, of those modalities with a unimodal pass that are new."""
        # Fake tensors (a count of operations) have shapes only: there are no values to look at.
        are_fake = any(isinstance(module._parameters[name], FakeTensor) for module, name, _ in self._partition.slots)
        self._open = set() if are_fake else set(modalities) - self._settled
        self._backward, self._at_output, self._at_encoder = False, {}, {}
        self._gates = self._closed_gates() if self._open else []  # before an optimizer opens them

    def watch_output(self, name: str, output: Any) -> None:
        """Watches what a pass gave (the multimodal one, too: it shows that there was a backward)."""
        if self._open:
            self._hook(output, functools.partial(self._arrived, self._at_output, name))

    def watch_encoder(self, modality: str, output: Any) -> None:
        """Watches what an encoder gave."""
        if modality in self._open:
            self._hook(output, functools.partial(self._arrived, self._at_encoder, modality))

    @staticmethod
    def _hook(output: Any, note: Any) -> None:
        for tensor in tensors_in(output):
            if tensor.requires_grad:
                tensor.register_hook(note)

    @torch.no_grad()
    def _arrived(self, where: dict[str, torch.Tensor], name: str, gradient: torch.Tensor | None) -> None:
        if gradient is None:  # of an output of a compiled region that nobody reads
            return
        self._backward = True
        before = where.get(name)
        found = (gradient != 0).any()
        where[name] = found if before is None else before | found.to(before.device)

    def verify(self) -> None:
        """Judges the backward that was watched, if there has been one. Every later call returns at once.

        Raises:
            RuntimeError: a unimodal loss has trained nothing; says why.
        """
        if not self._open or not self._backward:
            return
        watched, self._open = sorted(self._open), set()
        for name in watched:
            if name not in self._at_output:
                raise RuntimeError(
                    f"The unimodal loss of {name!r} trained nothing: after the first backward no gradient had reached "
                    "its encoder. The loss was computed from the multimodal output alone. In your own loop, backward "
                    "`model(**batch).loss`, or `handle.loss(output, criterion)` for a loss of your own; in a "
                    "Trainer, let `compute_loss` call the model that it is given."
                )
            if not self._at_output[name]:
                continue  # nothing to learn from this batch (no row counts): the next one is watched
            if name in self._at_encoder and self._at_encoder[name]:
                self._settled.add(name)
            else:
                self._nothing_arrived(name)

    def _nothing_arrived(self, name: str) -> None:
        what = (
            f"The unimodal loss of {name!r} has a gradient, but none of it reaches the encoder: it is exactly zero "
            "there. The fusion passes nothing of this modality on where the others are absent"
        )
        if not self._gates or self._closed_for[name] >= _PATIENCE:
            raise RuntimeError(
                f"{what} (a product with zeros is zero). Say in `Modality(absent=...)` what the fusion shall see in "
                f"place of an absent one, e.g. `absent=torch.ones_like`, or train without this modality's unimodal "
                f"loss: `alpha={{{name!r}: 0, ...}}`."
            )
        if not self._closed_for[name]:
            logger.warning(
                "%s, or its way is closed by parameters that begin at zero, such as %r.", what, self._gates[0]
            )
        self._closed_for[name] += 1

    @torch.no_grad()
    def _closed_gates(self) -> list[str]:
        """Parameters of the fusion, other than biases, that are zero."""
        places = [(name, module._parameters[name]) for module, name, owners in self._partition.slots if not owners]
        return [name for name, value in places if value is not None and not name.endswith("bias") and not value.any()]
