"""Fixtures that all tests share. The factories themselves are plain functions in `tests/tiny.py`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs the network is a bug
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch
import transformers

from tests import devices, tiny

transformers.logging.disable_progress_bar()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="run everything, the tests marked `slow` too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--runslow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: needs --runslow"))


@pytest.fixture(scope="module", autouse=True)
def _device(request: pytest.FixtureRequest) -> Iterator[None]:
    """Tests of a module that is marked `device` have their models where HF_DGL_TEST_DEVICE says."""
    with devices.placed(request.node.get_closest_marker("device") is not None):
        yield


@pytest.fixture(autouse=True)
def _seed() -> Iterator[None]:
    torch.manual_seed(0)
    yield


@pytest.fixture
def image_text_model() -> Any:
    """Tiny ViT + BERT classifier, cross-attention fusion, eval mode."""
    return tiny.tiny_model(("image", "text"))


@pytest.fixture
def image_text_batch() -> dict[str, Any]:
    """Four rows for `image_text_model`, labels included."""
    return tiny.tiny_batch(("image", "text"))


@pytest.fixture
def image_text_processor() -> Any:
    """PIL images and sentences -> inputs of `image_text_model`."""
    return tiny.tiny_processor(("image", "text"))
