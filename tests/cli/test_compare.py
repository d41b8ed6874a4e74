from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_dgl.analysis.comparison import run as module
from hf_dgl.cli import main
from hf_dgl.cli.compare import read_sweeps
from hf_dgl.recipe.recipe import load_recipe
from tests.recipes import tiny_recipe


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A recipe whose runs are not trained but made up."""

    def call(words: Any, out: Path, *_: Any) -> None:
        found = load_recipe(words[1], words[2:])
        if found.training.seed == 13:
            raise RuntimeError("no luck")
        test = {"accuracy": 0.5 + 0.01 * found.training.seed, "accuracy_image": 0.4, "accuracy_text": 0.3}
        (out.parent / "metrics.json").write_text(json.dumps({"test": test, "validation": test}))

    monkeypatch.setattr(module, "_call", call)
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(tmp_path / "out")))
    return str(path)


def test_tables_are_printed_and_written(recipe: str, tmp_path: Path, capsys: Any) -> None:
    words = ["compare", recipe, "--methods", "joint,dgl", "--seeds", "0", "1", "--sweep", "alpha=1,2"]
    words += ["--output_dir", str(tmp_path / "out"), "--max_steps", "1"]
    assert main(words) == 0
    printed = capsys.readouterr()
    assert printed.out.strip() == (tmp_path / "out" / "comparison.md").read_text().strip()
    assert "| method | alpha |" in printed.out and "too few seeds" in printed.out
    assert "6/6" in printed.err  # the bar of progress


def test_exit_code_tells_of_failures(recipe: str, tmp_path: Path, capsys: Any) -> None:
    words = ["compare", recipe, "--methods", "joint", "--output_dir", str(tmp_path / "out"), "--seeds"]
    assert main([*words, "0", "13"]) == 1
    assert "`joint-13`:\n\n```\nno luck\n```" in capsys.readouterr().out
    assert main([*words, "13"]) == 1
    assert "hf-dgl compare: No run was successful. joint-13 ended with:\nno luck" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "joint,dlg"], "did you mean 'dgl'"),
        (["--methods", "joint", "dgl"], "Methods have commas between them: `--methods joint,dgl`"),
        (["--sweep", "alpha"], "expected KEY=VALUE,VALUE"),
        (["--sweep", "alhpa=1"], "Unknown key 'alhpa'"),
        (["--tune", "alpha"], "--tune: expected KEY=VALUE,VALUE"),
        (["--missing", "25"], "shares of the rows from 0 to 1"),
        (["--sweep", "alpha=1", "alpha=2"], "comes twice"),
        (["--jobs", "0"], "at least 1"),
    ],
)
def test_mistakes(recipe: str, capsys: Any, words: list[str], message: str) -> None:
    assert main(["compare", recipe, *words]) == 2
    assert message in capsys.readouterr().err


def test_help(capsys: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["compare", "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert all(
        word in printed
        for word in ("--sweep", "--contributions", "--probes", "unimodal", "--jobs", "--tune", "--missing")
    )


def test_read_sweeps() -> None:
    assert read_sweeps(["alpha=0.5,1, 2,1", "encoders=text=a,text=b"]) == {
        "alpha": ["0.5", "1", "2"],
        "encoders": ["text=a", "text=b"],
    }
