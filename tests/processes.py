"""Functions in processes of their own, forked from one that has the libraries loaded: an import costs seconds."""

from __future__ import annotations

import io
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing

from hf_dgl.cli import main

multiprocessing.set_forkserver_preload(["tests.conftest", "hf_dgl.training", "hf_dgl.recipe.finetune"])


def in_a_process(work: Callable[..., None], *args: Any) -> None:
    """Calls `work(*args)`, a function at the top of a module, in another process."""
    process = multiprocessing.get_context("forkserver").Process(target=work, args=args)
    process.start()
    process.join(timeout=1200)  # of a minute's work, on a machine that has a lot else to do
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode == 0, f"exit code {process.exitcode}"


def hf_dgl_in_a_process(words: Sequence[str], out: Path, log: Path) -> int | None:
    """`hf-dgl WORDS` with its output in `out` and its errors in `log`; its exit code."""
    process = multiprocessing.get_context("forkserver").Process(target=_to_files, args=(list(words), out, log))
    process.start()
    process.join()
    return process.exitcode


def as_launched(work: Callable[..., None], *args: Any) -> None:
    """Calls `work(rank, *args)` in each of two processes, in the environment that a launcher makes.

    `work` stands at the top of a module.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(
        _process, (port, os.getcwd(), work, args), nprocs=2, start_method="forkserver"
    )


def hf_dgl_as_launched(words: Sequence[str], folder: Path) -> str:
    """`hf-dgl WORDS` in each of two processes; what both have printed."""
    as_launched(_command, list(words), str(folder))
    return "".join((folder / f"printed-{rank}.txt").read_text() for rank in (0, 1))


def in_two_processes(work: Callable[..., None], *args: Any) -> None:
    """The same, in two processes of one gloo group."""
    as_launched(_in_a_group, work, args)


def _process(rank: int, port: int, folder: str, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    os.chdir(folder)
    of_a_launcher = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    os.environ.update({name: str(value) for name, value in of_a_launcher.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    work(rank, *args)


def _to_files(words: list[str], out: Path, log: Path) -> None:
    with open(log, "a") as errors, open(out, "a" if out == log else "w") as output:
        with redirect_stdout(output), redirect_stderr(errors):
            code = main(words)
    sys.exit(code)


def _command(rank: int, words: list[str], folder: str) -> None:
    said = io.StringIO()
    with Path(folder, f"printed-{rank}.txt").open("w") as printed, redirect_stdout(printed), redirect_stderr(said):
        code = main(words)
    assert code == 0, f"process {rank} ended with {code}, and said:\n{said.getvalue()}"


def _in_a_group(rank: int, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    torch.distributed.init_process_group("gloo")
    work(rank, *args)
    torch.distributed.destroy_process_group()
