"""The device of the tests that are marked `device`: the CPU, or what `HF_DGL_TEST_DEVICE` names.

    HF_DGL_TEST_DEVICE=cuda pytest -m device

The tiny models and batches of `tiny.py`, `oracle.py` and `architectures_tiny.py` are made on the CPU, so that they are
the same everywhere, and put there. Everything else of a test that has to lie beside them goes through `put`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

_WANTED = torch.device(os.environ.get("HF_DGL_TEST_DEVICE", "cpu"))
_current = torch.device("cpu")


def current() -> torch.device:
    """Where the test that runs has its models."""
    return _current


def put(tree: Any) -> Any:
    """Tensors, modules, and what dicts, lists and tuples hold of them, on the current device."""
    if isinstance(tree, (torch.Tensor, nn.Module)):
        return tree.to(_current)
    if isinstance(tree, dict):
        return {key: put(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(put(value) for value in tree)
    return tree


@contextmanager
def placed(on_the_device: bool) -> Iterator[None]:
    """Puts what is made within on the wanted device, where one computation gives one result."""
    global _current
    _current = _WANTED if on_the_device else torch.device("cpu")
    before = torch.are_deterministic_algorithms_enabled()
    try:
        if _current.type != "cpu":
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic matrix products need
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # 10 of 23 bits
        yield
    finally:
        _current = torch.device("cpu")
        torch.use_deterministic_algorithms(before)
