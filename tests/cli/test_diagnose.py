from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hf_dgl.cli import main
from tests.regimes import BENCHMARK, write


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    return str(write(BENCHMARK[0], tmp_path, max_train_samples=64, max_eval_samples=40))


def test_tables_words_and_files(recipe: str, tmp_path: Path, capsys: Any) -> None:
    assert main(["diagnose", recipe, "--output_dir", str(tmp_path / "found"), "--max_steps", "3"]) == 0
    printed = capsys.readouterr()
    for words in ("last third", "their answers added up", "Gradients:", "Linear probes", "How sure", "Method"):
        assert words in printed.out
    assert "run 4 of 4: bilinear fusion" in printed.err and "train_loss" not in printed.out + printed.err
    assert (tmp_path / "found" / "diagnosis.md").is_file()


def test_json(recipe: str, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_dgl.analysis import diagnosis
    from tests.analysis.diagnosis.test_run import with_regime

    called: list[Any] = []
    monkeypatch.setattr(diagnosis, "diagnose", lambda *words: (called.append(words[:3]), with_regime("mixed"))[1])
    assert main(["diagnose", recipe, "--json", "--max_steps", "3", "--seed", "1"]) == 0
    assert called == [(recipe, ["--max_steps", "3", "--seed", "1"], None)]
    assert json.loads(capsys.readouterr().out)["method"] == "joint"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_stepz", "3"], "did you mean 'max_steps'"),
        (["--streaming", "true"], "--streaming false"),
        (["--encoders", "{text_a: null}"], "at least two"),
    ],
)
def test_mistakes(recipe: str, capsys: Any, words: list[str], message: str) -> None:
    assert main(["diagnose", recipe, *words]) == 2
    assert message in capsys.readouterr().err


def test_help(capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["diagnose", "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("--output_dir", "--json", "validation", "bilinear"))
