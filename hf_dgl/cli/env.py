"""`hf-dgl env`: the versions that a bug report needs."""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = [
    "hf-dgl",
    "torch",
    "transformers",
    "datasets",
    "accelerate",
    "evaluate",
    "huggingface_hub",
    "peft",
    "numpy",
]


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to `hf-dgl`."""
    parser = commands.add_parser("env", parents=[common], help="versions, for a bug report", allow_abbrev=False)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Prints one `name: version` line each for Python, the platform, our dependencies and the accelerator."""
    if rest:
        raise ValueError(f"`hf-dgl env` takes no further words, got {' '.join(rest)!r}.")
    import torch

    print(f"python: {platform.python_version()}")
    print(f"platform: {platform.platform()}")
    for package in _PACKAGES:
        print(f"{package}: {_version(package)}")
    device = torch.accelerator.current_accelerator()
    print(f"accelerator: {'none' if device is None else f'{device.type} x {torch.accelerator.device_count()}'}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
