"""`report.html`: one file, well-formed, with the numbers of the run."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hf_dgl.recipe.finetune import finetune
from hf_dgl.recipe.recipe import make_recipe
from hf_dgl.reports.training_report import write_report
from tests.recipes import tiny_recipe


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "<digits>"
    finetune(
        make_recipe(tiny_recipe(folder, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1))
    )
    return folder


class Page(HTMLParser):
    """Collects text, the cells of the tables, and every address; complains about tags that do not match."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []
        self.addresses: list[str] = []
        self.feed(content)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [str(value) for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th", "b"):
            self.cells.append(data)


def test_report_of_a_run(out: Path) -> None:
    content = (out / "report.html").read_text(encoding="utf-8")
    page = Page(content)
    assert page.addresses == [] and "<script" not in content and "url(http" not in content  # it needs no other file
    assert content.count("<svg") == 3
    test = json.loads((out / "metrics.json").read_text())["test"]
    for key in ("accuracy", "accuracy_image", "accuracy_text", "f1"):
        assert f"{test[key]:.3f}" in page.cells
    log = json.loads((out / "trainer_state.json").read_text())["log_history"]
    for entry in log:
        for key in ("loss_multimodal", "loss_image", "loss_text", "grad_norm_fusion", "grad_norm_image", "eval_loss"):
            shown = f"{entry.get(key, 0):.4g}"
            assert key not in entry or any(cell.rstrip("0") == shown.rstrip("0") for cell in page.cells), (key, shown)
    assert "&lt;digits&gt;" in content and "<digits>" not in content  # names are text, never markup
    assert str(out) not in content and str(out.parent) not in content
    assert not re.search(r"\bNone\b|Undefined|\bnan\b", re.sub(r"<svg.*?</svg>", "", content, flags=re.DOTALL))


def test_report_of_a_checkpoint(out: Path) -> None:
    """A run that is still going, or was killed."""
    path = write_report(out / "checkpoint-1")
    content = path.read_text()
    path.unlink()
    assert "<h2>Evaluations</h2>" in content and "<h2>Results</h2>" not in content


def test_other_models_need_no_list_of_modalities(tmp_path: Path) -> None:
    log = [{"step": 1, "epoch": 1.0, "loss": 3.0, "loss_multimodal": 1.0, "loss_sound": 2.0}]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": log, "global_step": 1, "epoch": 1.0}))
    assert "loss_sound" in Page(write_report(tmp_path).read_text()).cells


def test_folder_of_no_trainer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a folder with trainer_state.json"):
        write_report(tmp_path)
