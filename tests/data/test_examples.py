"""The examples in the docstrings are run."""

import doctest
import importlib

import pytest

from hf_dgl.data.labels import LabelSpec
from hf_dgl.data.samples import load_sample

MODULES = ["samples", "speech", "labels", "media", "splits", "collator", "sources"]
MODULES += ["limits", "workers", "streaming", "mixing", "report", "broken", "preparation"]
MODULES += ["columns", "renaming", "tables", "label_values", "constant", "looking"]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, processor):
    module = importlib.import_module(f"hf_dgl.data.{name}")
    takes_data = ("collator", "limits", "report", "broken", "preparation")
    names = {"processor": processor, "data": load_sample("image_text")} if name in takes_data else {}
    result = doctest.testmod(
        module, extraglobs={**names, "LabelSpec": LabelSpec}, optionflags=doctest.IGNORE_EXCEPTION_DETAIL
    )
    assert result.attempted > 0
    assert result.failed == 0
