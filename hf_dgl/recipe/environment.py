"""What a run was made by and on: the source's commit, versions, the machine; and the memory that it took.

Two rows of a table can be compared if they come from one commit and one machine, so each run leaves both in its
`environment.json`. (`metrics.json` holds what is the same whenever and wherever a run is repeated.)
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "hf-dgl",
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "evaluate",
    "huggingface_hub",
    "peft",
    "numpy",
)

_MIB = 2**20


def environment() -> dict[str, Any]:
    """Commit, versions and machine, ready for JSON.

    Returns:
        `commit`: see [`commit`]; `versions`: package -> version; `machine`: `cpu`, `cores` (those that this process
        may use), `threads` of torch, `accelerator` (None without).

    Example:

        >>> environment()["machine"]["cores"]
        2
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "commit": commit(),
        "versions": {"python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}},
        "machine": {
            "cpu": _cpu(),
            "cores": cores,
            "threads": torch.get_num_threads(),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    }


def commit(package: Path | None = None) -> str:
    """The git commit of this package's source, with `+dirty` if a file of it was changed since; else its version.

    Args:
        package: Its folder. Default: the one that runs. It is looked up only where the folder above is
            the checkout's root: an environment that lies in somebody's repository has none.

    Example:

        >>> commit()
        '74a1dc7c0e6b1f1a9fb0f5d8f9f2d9c0d9a3b8e1+dirty'
    """
    package = package or Path(__file__).resolve().parents[1]
    root = _git(package, "rev-parse", "--show-toplevel")
    if not root or Path(root).resolve() != package.resolve().parent:
        return version_of("hf-dgl")
    head, changed = _git(package, "rev-parse", "HEAD"), _git(package, "status", "--porcelain", "--", ".")
    if not head:
        return version_of("hf-dgl")
    return f"{head}+dirty" if changed else head


def version_of(package: str) -> str:
    """Of an installed package; `not installed` of others.

    Example:

        >>> version_of("no-such-package")
        'not installed'
    """
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def peak_memory_mib(device: torch.device) -> float:
    """The most memory that this process has held so far, in MiB.

    On a GPU: what tensors held there (`torch.cuda.max_memory_allocated`), since its statistics were reset last. Else
    the process's resident memory, libraries included. (Linux counts in `ru_maxrss` what the process was started from,
    too; `VmHWM` is its own.)

    Example:

        >>> peak_memory_mib(torch.device("cpu"))
        812.4
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _MIB
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text()) if status.is_file() else None
    if found:
        return int(found.group(1)) / 1024
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (_MIB if sys.platform == "darwin" else 1024)


def _git(folder: Path, *words: str) -> str:
    """What git says; nothing where there is no git, or no checkout."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            text=True,
            timeout=20,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _cpu() -> str:
    """The processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return named.group(1).strip() if named else platform.processor() or platform.machine()
