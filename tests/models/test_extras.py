"""Hints that fit the kind of install."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hf_dgl.models import extras
from hf_dgl.models.extras import add_extra, require

ROOT = Path(__file__).parents[2]


def test_hints_fit_the_kind_of_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert add_extra("demo") == 'pip install -c constraints.txt -e ".[demo]"'
    monkeypatch.chdir(tmp_path)
    assert add_extra("demo") == f'pip install -c "{ROOT}/constraints.txt" -e "{ROOT}[demo]"'
    monkeypatch.setattr(extras, "PACKAGE_FOLDER", tmp_path / "site-packages" / "hf_dgl")
    assert add_extra("demo") == 'pip install "hf-dgl[demo]"'


def test_missing_packages_are_named(monkeypatch: Any) -> None:
    require("Tables", "demo", "json", "csv")
    with pytest.raises(ValueError, match=r"Tables needs the packages nosuch_a, nosuch_b\. Type: pip install .*demo"):
        require("Tables", "demo", "json", "nosuch_a", "nosuch_b")
