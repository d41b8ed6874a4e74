"""Optimisation by group: freezing, learning rates and gradient clipping for each encoder and the fusion apart."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from transformers.utils import logging

from hf_dgl.method.modalities import FUSION, Partition, did_you_mean

logger = logging.get_logger(__name__)


def parameter_groups(partition: Partition) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters of each modality (`image+text`: shared by both) and of the fusion.

    Example:

        >>> {name: len(parameters) for name, parameters in parameter_groups(handle.partition).items()}
        {'image': 28, 'text': 28, 'fusion': 40}
    """
    groups: dict[str, dict[int, nn.Parameter]] = defaultdict(dict)
    for parameter, owners in partition.parameters():
        if parameter.requires_grad:
            groups["+".join(sorted(owners)) or FUSION][id(parameter)] = parameter
    return {name: list(parameters.values()) for name, parameters in groups.items()}


def freeze(partition: Partition, names: Sequence[str]) -> None:
    """Makes the parameters of these groups not trainable. What two modalities share stays so if one of them trains.

    Args:
        partition: Of the model.
        names: Modalities, or `fusion` for everything that belongs to none.

    Raises:
        ValueError: on an unknown name, or if nothing is left to train.

    Example:

        >>> freeze(handle.partition, ["text"])
    """
    for name in names:
        if name not in partition.groups:
            raise ValueError(
                f"`freeze` names an unknown part {name!r}{did_you_mean(name, partition.groups)} "
                f"Parts: {partition.groups}."
            )
    trainable = parameter_groups(partition)
    for parameter, owners in partition.parameters():
        if (owners or {FUSION}) <= set(names):
            parameter.requires_grad_(False)
    if trainable and not parameter_groups(partition):
        raise ValueError(f"`freeze: {list(names)}` leaves nothing to train: take one of them out.")


def learning_rates(
    model: nn.Module, partition: Partition, of_modality: Mapping[str, float], of_pattern: Mapping[str, float]
) -> dict[int, float]:
    """Learning rate by `id` of the parameters whose rate is not the default one.

    Args:
        model, partition: Whose parameters are meant.
        of_modality: Modality -> learning rate of its encoder. What encoders share gets the highest of theirs.
        of_pattern: Regular expression -> learning rate of the parameters in whose names it is found (`re.search`). The
            first that matches counts, and it counts more than `of_modality`.

    Raises:
        ValueError: if a pattern matches no parameter (names the nearest).

    Example:

        >>> learning_rates(model, handle.partition, {"image": 1e-5}, {"embeddings": 1e-6, "^classifier": 1e-3})
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    for pattern in of_pattern:
        if not any(re.search(pattern, name) for name in named):
            raise ValueError(
                f"`learning_rate_mapping`: no parameter matches {pattern!r}. The nearest one is called "
                f"{_nearest(pattern, list(named))!r}."
            )
    rates: dict[int, float] = {}
    used = set()
    for name, parameter in named.items():
        own = [of_modality[owner] for owner in partition.owners[name] if owner in of_modality]
        if own:
            rates.setdefault(id(parameter), max(own))
    for name, parameter in reversed(named.items()):  # a tied parameter goes by its first name
        first = next((pattern for pattern in of_pattern if re.search(pattern, name)), None)
        if first is not None:
            rates[id(parameter)] = of_pattern[first]
            used |= {first} if parameter.requires_grad else set()
    for pattern in of_pattern:
        if pattern not in used:
            logger.warning(
                f"`learning_rate_mapping`: {pattern!r} changes nothing: what it matches is frozen, or matched by an "
                "earlier pattern."
            )
    return rates


def split_by_learning_rate(optimizer: torch.optim.Optimizer, rates: Mapping[int, float]) -> None:
    """Splits the optimizer's parameter groups so that each parameter gets its rate; all else stays as it is.

    Args:
        optimizer: Fresh from its construction.
        rates: From [`learning_rates`].

    Example:

        >>> split_by_learning_rate(optimizer, {id(model.classifier.weight): 1e-3})
    """
    split = []
    for group in optimizer.param_groups:
        by_rate: dict[float, list[nn.Parameter]] = defaultdict(list)
        for parameter in group["params"]:
            by_rate[rates.get(id(parameter), group["lr"])].append(parameter)
        split += [{**group, "params": parameters, "lr": rate} for rate, parameters in by_rate.items()]
    optimizer.param_groups[:] = split


def check_learning_rates(optimizer: torch.optim.Optimizer, model: nn.Module, rates: Mapping[int, float]) -> None:
    """Refuses optimizers that make groups of their own (layer by layer, several in one), whose rates stay the same.

    Args:
        optimizer: After [`split_by_learning_rate`].
        model: Whose trainable parameters it has.
        rates: From [`learning_rates`].

    Raises:
        ValueError: if a parameter has another rate.

    Example:

        >>> check_learning_rates(optimizer, model, {id(model.classifier.weight): 1e-3})
    """
    given = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in model.named_parameters():
        wanted = rates.get(id(parameter))
        if parameter.requires_grad and wanted is not None and given.get(id(parameter)) != wanted:
            raise ValueError(
                f"{type(optimizer).__name__} groups parameters in its own way, so it cannot give {name!r} the "
                f"learning rate {wanted:g}: remove `encoder_learning_rate` and `learning_rate_mapping`, or choose "
                "another `optim`, e.g. adamw_torch."
            )


def clip_by_group(partition: Partition, max_norm: float) -> dict[str, torch.Tensor]:
    """Clips the gradients of each group by the group's own norm.

    One norm for all would let the modalities scale one another's gradients, which is what DGL removes.

    Args:
        partition: Of the model, after backward.
        max_norm: Of each group.

    Returns:
        Group -> norm before clipping, a scalar on the device.

    Example:

        >>> clip_by_group(handle.partition, max_norm=1.0)
        {'image': tensor(0.3), 'text': tensor(2.1), 'fusion': tensor(0.9)}
    """
    norms = {}
    for name, parameters in parameter_groups(partition).items():
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        norms[name] = norm.to(parameters[0].device)  # of a group without gradients it is a zero on the CPU
    return norms


def _nearest(pattern: str, names: Sequence[str]) -> str:
    """The parameter name with the part that is most like the pattern, compared at the pattern's number of segments."""
    plain = pattern.replace("\\", "").strip("^$.*")
    length = plain.count(".") + 1
    holder: dict[str, str] = {}
    for name in names:
        parts = name.split(".")
        for start in range(len(parts) - length + 1):
            holder.setdefault(".".join(parts[start : start + length]), name)
    matches = difflib.get_close_matches(plain, holder, n=1, cutoff=0.0)
    return holder[matches[0]] if matches else names[0]
