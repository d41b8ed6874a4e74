"""`hf-dgl push` without a Hub: its help, and mistakes that are told before anything is sent (else: `tests/hub`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_dgl.cli import main


def test_help(capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["push", "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: hf-dgl push") and "--private" in text and "--revision BRANCH" in text


@pytest.mark.parametrize("words", [[], ["out"]])
def test_what_it_needs(words: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["push", *words])
    assert stopped.value.code == 2
    assert "user/name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["OUT", "user/x", "--privat"], "Did not understand '--privat'"),
        (["OUT/nowhere", "user/x"], "where there is nothing; expected a folder with a model"),
        (["OUT", "user/x"], "HF_HUB_OFFLINE is set, so nothing can be uploaded: type `unset HF_HUB_OFFLINE`"),
    ],
)
def test_mistakes(words: list[str], message: str, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    words = [word.replace("OUT", str(tmp_path)) for word in words]
    assert main(["push", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("hf-dgl push: ") and message in error


def test_damaged_weights_are_not_uploaded(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "config.json").write_text(json.dumps({}))
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    assert main(["push", str(tmp_path), "user/x"]) == 2
    assert "model.safetensors is damaged" in capsys.readouterr().err
