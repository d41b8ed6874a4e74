"""A function in two gloo processes."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing


def in_two_processes(work: Callable[..., None], *args: Any) -> None:
    """Calls `work(rank, *args)` in each of two processes of one group; `work` stands at the top of a module."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_process, args=(port, work, args), nprocs=2)


def _process(rank: int, port: int, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    work(rank, *args)
    torch.distributed.destroy_process_group()
