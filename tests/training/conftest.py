"""What makes many short trainings cheap."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _old_objects_are_not_collected() -> Iterator[None]:
    """Upstream collects garbage at the start of each training, which takes longer than a tiny one."""
    gc.freeze()
    yield
    gc.unfreeze()
