"""Whether a device that a user named is there."""

from __future__ import annotations

import torch


def check_device(device: str | int | torch.device) -> None:
    """Refuses what torch cannot allocate on.

    Args:
        device: As `transformers.Pipeline` takes it: a name, a number, or -1 for the CPU.

    Raises:
        ValueError: says what is wrong with it, and what there is.

    Example:

        >>> check_device("cpu")
    """
    if device == -1:  # upstream's word for the CPU
        return
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        here = torch.accelerator.current_accelerator()
        raise ValueError(
            f"Cannot use the device {str(device)!r}: {str(error).splitlines()[0].rstrip('.')}. Here there is: cpu"
            f"{f', {here.type}' if here is not None else ''}."
        ) from error
