"""Which ways of sharding a model over processes keep DGL's gradients exact, and which are refused.

| way | |
|---|---|
| DDP | exact, tested by real processes |
| FSDP2 (`fully_shard`) | exact, tested by real processes |
| DeepSpeed ZeRO-1, ZeRO-2 | by its source as exact as DDP; not tested here, for lack of GPUs |
| DeepSpeed ZeRO-3, FSDP version 1, `nn.DataParallel` | refused |

ZeRO-1 and ZeRO-2 keep the parameters whole and the same objects, and reduce each gradient in a hook on its
accumulation, once per backward, of which DGL has one. They clip gradients by themselves, by one norm over everything.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed


def leave_process_group() -> None:
    """Ends this process's part in a distributed run, at the end of its work; without one nothing happens.

    A process that ends while gloo's threads still run may be aborted by them ("terminate called without an active
    exception"), and the launcher then reports a run as failed that has done everything.

    Example:

        >>> trainer.train()
        >>> leave_process_group()
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def refuse_what_is_not_exact(state: Any) -> None:
    """Raises for ways of sharding that would make the gradients wrong, or that cannot be shown to keep them right.

    ZeRO-3 gathers and drops the weights of a module in hooks of that module, in an order that it records in the first
    forward. DGL's passes leave modules out and run others again inside of one forward. FSDP version 1 puts views of
    one flat parameter in place of a module's parameters, and views have no `requires_grad` to switch off.

    Args:
        state: `accelerate.state.AcceleratorState`, of which the plugins are read.

    Raises:
        ValueError: says what to use instead.

    Example:

        >>> refuse_what_is_not_exact(Accelerator().state)
    """
    deepspeed = getattr(state, "deepspeed_plugin", None)
    if deepspeed is not None and deepspeed.zero_stage == 33:
        raise ValueError(
            "DGL does not run under DeepSpeed ZeRO-3, which fetches and drops weights in an order that DGL's passes "
            "change: the gradients could be wrong without a sign. Use FSDP2 instead "
            "(recipes/accelerate/fsdp.yaml), which shards the weights too, or ZeRO-2 "
            "(recipes/accelerate/deepspeed_zero2.yaml)."
        )
    fsdp = getattr(state, "fsdp_plugin", None)
    if fsdp is not None and fsdp.fsdp_version == 1:
        raise ValueError(
            "DGL does not run under FSDP version 1, which hides the parameters whose gradients DGL routes. Set "
            "`fsdp_version: 2` (see recipes/accelerate/fsdp.yaml; in a recipe: `fsdp_config: {version: 2}`)."
        )
