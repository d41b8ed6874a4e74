"""`hf-dgl env`: the versions that a bug report needs."""

from __future__ import annotations

import argparse
import platform
from typing import Any


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to `hf-dgl`."""
    parser = commands.add_parser("env", parents=[common], help="versions, for a bug report", allow_abbrev=False)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Prints one `name: version` line each for Python, the platform, our dependencies and the accelerator."""
    if rest:
        raise ValueError(f"`hf-dgl env` takes no further words, got {' '.join(rest)!r}.")
    import torch

    from hf_dgl.recipe.environment import PACKAGES, commit, version_of

    print(f"python: {platform.python_version()}")
    print(f"platform: {platform.platform()}")
    for package in PACKAGES:
        print(f"{package}: {version_of(package)}")
    print(f"commit: {commit()}")
    device = torch.accelerator.current_accelerator()
    print(f"accelerator: {'none' if device is None else f'{device.type} x {torch.accelerator.device_count()}'}")
