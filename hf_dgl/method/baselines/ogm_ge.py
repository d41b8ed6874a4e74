r"""OGM-GE: on-the-fly gradient modulation with generalisation enhancement, a baseline (`method: ogm_ge`).

Source: Peng, Wei, Deng, Wang, Hu, "Balanced Multimodal Learning via On-the-fly Gradient Modulation", CVPR 2022,
arXiv 2203.15332, equations 8 to 10, and the authors' published code, written anew here. Training is joint; after each
backward the gradients of the encoders are changed:

    s_m = sum over the batch of softmax(logits of modality m alone)[true class]
    rho_m = s_m / s_of_the_other_modality
    k_m = 1 - tanh(alpha rho_m)   if rho_m > 1,   else 1                                  (equation 10)
    g_m <- k_m g_m + e,   e ~ N(0, std(g_m)^2)   for each parameter tensor                (GE: the noise)

So the modality that predicts the class better by itself is slowed down. The standard deviation is that of the
gradient before it is scaled, and the noise reaches every encoder, also one with k_m = 1, as in the authors' code.

Choices that the paper leaves open:

- *Logits of a modality alone* come from a pass of that modality through the same fusion, which trains nothing. For
  concatenation with a linear head the paper takes `W_m z_m + b / 2`; here it is `W_m z_m + b`, what the model really
  answers without the other modality. The two differ by half a bias, the same for all modalities.
- *More than two modalities*: rho_m is taken to the weakest one (`s_m / min s`), as in the authors' BalanceBenchmark;
  for two modalities that is equation 10. All but the weakest are slowed down.
- *Rows without a modality*: s_m is the mean over the rows that have it, which for complete batches is the same ratio.
- *Which parameters*: all of the encoder (equation 10). The authors' code takes only their convolutions' kernels. What
  two encoders share has no one coefficient, and is left alone.
- *Accumulation, several processes*: a coefficient is that of the whole batch of an optimiser step.

Optimisers of the Adam family divide by the gradient's running size: a coefficient that stays constant cancels, and
only its changes over time, and the noise, have an effect. The paper trains with SGD.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hf_dgl.method.disentangle import Disentangled
from hf_dgl.method.processes import sum_over_processes


def true_class_scores(logits: Tensor, labels: Tensor, rows: Tensor | None = None) -> Tensor:
    """What one modality gives to the true classes: their summed probabilities, and the number of rows.

    Args:
        logits: `[B, C]`, of the modality alone.
        labels: `[B]`, class ids; -100 is left out.
        rows: Bool `[B]`, which rows have the modality. None: all.

    Returns:
        Float64 `[2]`.

    Example:

        >>> true_class_scores(torch.tensor([[0.0, 0.0], [0.0, 0.0]]), torch.tensor([0, -100]))
        tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    labels = labels.view(-1)
    counted = labels != -100
    if rows is not None:
        counted = counted & rows.view(-1).to(counted.device)
    probabilities = logits.detach().double().softmax(-1)
    of_true_class = probabilities.gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1)
    return torch.stack([torch.where(counted, of_true_class, 0.0).sum(), counted.sum().double()])


def coefficients(scores: Tensor, alpha: float) -> Tensor:
    """The factors of the encoders' gradients (equation 10; the ratio is to the weakest modality).

    Args:
        scores: Float `[M]`, above 0: summed or mean probability of the true class by each modality alone; NaN for a
            modality that was not there, whose factor is 1.
        alpha: Degree of modulation, 0 or more.

    Returns:
        `[M]`, each above 0 and at most 1.

    Example:

        >>> coefficients(torch.tensor([6.0, 3.0]), alpha=0.1)  # 1 - tanh(0.1 * 2), 1
        tensor([0.8026, 1.0000])
    """
    weakest = torch.where(scores.isnan(), torch.inf, scores).min()
    ratios = scores / weakest
    return torch.where(ratios > 1, 1 - torch.tanh(alpha * ratios), 1.0)


class Modulation:
    """OGM-GE for a disentangled model: counts scores at every forward, changes the gradients before every step.

    Args:
        handle: With joint training's settings (`alpha=0`, `multimodal_to_encoders=1`). From now on it also runs each
            modality alone, without training anything by it.
        alpha: Degree of modulation. The authors publish 0.1 as their default.
        noise: Whether to add the Gaussian noise (GE).
        seed: Of the noise. It is drawn anew from this and the step's number, so that all processes add the same and a
            resumed run goes on as if it had not been interrupted.

    Raises:
        ValueError: `alpha` below 0.

    Example:

        >>> handle = disentangle(model, modalities, alpha=0.0, multimodal_to_encoders=1.0)
        >>> modulation = Modulation(handle, alpha=0.1)
        >>> for step, batch in enumerate(loader):
        ...     out = model(**batch)
        ...     out.loss.backward()
        ...     modulation.count({name: one.logits for name, one in out.unimodal.items()}, batch["labels"])
        ...     modulation.modulate(step)
        ...     optimizer.step()
        ...     optimizer.zero_grad()
    """

    def __init__(self, handle: Disentangled, alpha: float = 0.1, noise: bool = True, seed: int = 0) -> None:
        if alpha < 0:
            raise ValueError(f"`ogm_alpha` must be 0 or more, got {alpha:g}.")
        handle.scores_alone = True
        self.handle, self.alpha, self.noise, self.seed = handle, alpha, noise, seed
        self.names = list(handle.partition.modalities)
        self._scores: Tensor | None = None  # [M, 2] since the last step: see `true_class_scores`
        self._logged: list[Tensor] = []  # coefficients [M] of the steps since the last log

    @torch.no_grad()
    def count(
        self, logits: Mapping[str, Tensor], labels: Tensor, present: Mapping[str, Tensor | None] | None = None
    ) -> None:
        """Counts one forward.

        Args:
            logits: Modality -> `[B, C]`, of it alone. One that is not in the batch has none.
            labels: `[B]`.
            present: Modality -> bool `[B]`, which rows have it. Default: all.
        """
        nothing = torch.zeros(2, dtype=torch.float64, device=labels.device)
        found = [
            true_class_scores(logits[name], labels, (present or {}).get(name)) if name in logits else nothing
            for name in self.names
        ]
        scores = torch.stack(found)
        self._scores = scores if self._scores is None else self._scores + scores

    @torch.no_grad()
    def modulate(self, step: int, active: bool = True) -> None:
        """Changes the gradients of the encoders in place: after backward, before they are clipped.

        Every process must call it. Nothing waits for the device.

        Args:
            step: Number of the optimiser step.
            active: False outside of the epochs that are modulated: then it only forgets the scores.
        """
        scores, self._scores = self._scores, None
        if scores is None or not active:
            return
        total, rows = sum_over_processes(scores).unbind(1)
        factors = coefficients(total / rows, self.alpha)  # 0 / 0 is NaN: nobody had it
        self._logged.append(factors)
        generators: dict[torch.device, torch.Generator] = {}
        for factor, name in zip(factors, self.names, strict=True):
            for parameter in self._parameters_of(name):
                gradient = parameter.grad
                assert gradient is not None
                added = self._noise_like(gradient, generators, step) if self.noise else None
                gradient.mul_(factor.to(gradient.device))
                if added is not None:
                    gradient.add_(added)

    def logs(self) -> dict[str, float]:
        """`ogm_coefficient_image`, ...: means over the steps since it was last asked for."""
        if not self._logged:
            return {}
        device = self._logged[-1].device  # what a checkpoint kept is on the CPU
        means, self._logged = torch.stack([factors.to(device) for factors in self._logged]).mean(0).tolist(), []
        return {f"ogm_coefficient_{name}": mean for name, mean in zip(self.names, means, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """The coefficients since the last log, for JSON."""
        return {"logged": [factors.tolist() for factors in self._logged]}

    def load_state_dict(self, kept: Mapping[str, Any]) -> None:
        """Goes on from what [`Modulation.state_dict`] gave."""
        self._logged = [torch.tensor(factors, dtype=torch.float64) for factors in kept["logged"]]

    def _parameters_of(self, modality: str) -> Iterator[nn.Parameter]:
        """The encoder's own parameters that have a gradient, each once."""
        seen = set()
        for parameter, owners in self.handle.partition.parameters():
            if owners == {modality} and parameter.grad is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter

    def _noise_like(self, gradient: Tensor, generators: dict[Any, torch.Generator], step: int) -> Tensor | None:
        if gradient.numel() < 2:  # has no standard deviation
            return None
        if gradient.device not in generators:
            generators[gradient.device] = torch.Generator(gradient.device).manual_seed(self.seed + 1_000_003 * step)
        drawn = torch.randn(
            gradient.shape, generator=generators[gradient.device], device=gradient.device, dtype=gradient.dtype
        )
        return drawn * gradient.std()
