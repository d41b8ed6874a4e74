"""`report.html` as people see it: at a desk and on a phone, by day and by night, read aloud, and without a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hf_dgl.reports.training_report import write_report
from tests.browser import SCREENS, browser, overflow, violations

LOG = [
    {"step": step, "epoch": step / 50, "loss": 3.0 - step / 100, "learning_rate": 1e-3 / (1 + step)}
    | {f"loss_{name}": 2.0 - step / 200 for name in ("multimodal", "image", "text")}
    | {f"grad_norm_{name}": 0.5 + step / 100 for name in ("fusion", "image", "text")}
    for step in range(10, 101, 10)
]
LOG += [
    {"step": step, "epoch": step / 50, "eval_loss": 2.3 - step / 100}
    | {f"eval_accuracy{end}": 0.1 + step / 200 for end in ("", "_image", "_text")}
    for step in (0, 50, 100)
]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("a_run_with_a_rather_long_name_for_a_phone")
    scores = {f"{metric}{end}": 0.5 for metric in ("accuracy", "f1") for end in ("", "_image", "_text")}
    state = {"log_history": sorted(LOG, key=lambda entry: entry["step"]), "global_step": 100, "epoch": 2.0}
    (folder / "trainer_state.json").write_text(json.dumps({**state, "best_global_step": 100}))
    (folder / "metrics.json").write_text(json.dumps(dict.fromkeys(("before", "validation", "test"), scores)))
    (folder / "config.json").write_text(
        json.dumps({"modalities": ["image", "text"], "id2label": {"0": "a", "1": "b"}})
    )
    (folder / "recipe.yaml").write_text("method: dgl\nmetric_for_best_model: accuracy\n")
    return write_report(folder)


def test_what_it_says(report: Path) -> None:
    page = report.read_text()
    assert "best step by accuracy" in page and page.count('<svg role="img" aria-labelledby="') == 3
    assert "<title" in page and "accuracy by step. fused: 0.1 at step 0, 0.6 at step 100" in page
    assert "By chance: 0.5." in page and page.index(">accuracy test<") < page.index(">accuracy before<")
    ids = [part.partition('"')[0] for part in page.split('id="')[1:]]
    assert len(ids) == len(set(ids))
    assert "#0708" not in page and "#010203" not in page  # all colours are the page's


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_it_can_be_read_and_named(report: Path, width: int, scheme: str) -> None:
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        outside: list[str] = []
        page.on("request", lambda request: outside.append(request.url))
        page.goto(report.as_uri())
        page.locator("summary").click()
        assert overflow(page) <= 0 and violations(page) == []
        assert outside == [report.as_uri()]
        heading = page.get_by_role("columnheader", name="accuracy test").bounding_box()
        assert heading["x"] + heading["width"] <= width
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") == (scheme == "light")
        drawn = page.evaluate("getComputedStyle(document.querySelector('svg text')).fill")
        assert drawn == page.evaluate("getComputedStyle(document.body).color")
