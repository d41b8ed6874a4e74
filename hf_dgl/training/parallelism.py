"""Which ways of sharding a model over processes keep DGL's gradients exact, and which are refused.

| way | |
|---|---|
| DDP | exact, tested by real processes |
| FSDP2 (`fully_shard`) | exact, tested by real processes |
| DeepSpeed ZeRO-1, ZeRO-2, ZeRO-3 | exact, ZeRO-2 and ZeRO-3 tested by real processes (`tests/distributed/zero.py`) |
| FSDP version 1, `nn.DataParallel` | refused |

ZeRO-1 and ZeRO-2 keep the parameters whole and the same objects, and reduce each gradient in a hook on its
accumulation, once per backward, of which DGL has one. ZeRO-3 gathers a module's weights in hooks of that module, in
every pass anew; DGL's own hook must come after the one by which its engine announces a forward (see
[`~hf_dgl.method.engine.Engine.come_last`]). DeepSpeed clips gradients by itself, by one norm over everything.
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

    FSDP version 1 puts views of one flat parameter in place of a module's parameters, and views have no
    `requires_grad` to switch off.

    Args:
        state: `accelerate.state.AcceleratorState`, of which the plugins are read.

    Raises:
        ValueError: says what to use instead.

    Example:

        >>> refuse_what_is_not_exact(Accelerator().state)
    """
    fsdp = getattr(state, "fsdp_plugin", None)
    if fsdp is not None and fsdp.fsdp_version == 1:
        raise ValueError(
            "DGL does not run under FSDP version 1, which hides the parameters whose gradients DGL routes. Set "
            "`fsdp_version: 2` (see recipes/accelerate/fsdp.yaml; in a recipe: `fsdp_config: {version: 2}`)."
        )
