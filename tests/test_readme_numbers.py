"""The README's tables, and those of the results page, hold what the committed comparisons hold."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests import result_tables
from tests.result_tables import PAGES, RESULTS, TABLE, written_anew

COMPARISONS = sorted(RESULTS.glob("**/comparison.json"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_tables_are_those_of_the_comparisons(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    assert written_anew(page) == page, "Type: python -m tests.result_tables"


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.parent.name)
def test_a_comparison_is_of_one_commit_and_one_machine(path: Path) -> None:
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    for key in ("commit", "machine"):
        found = {json.dumps(run["environment"][key], sort_keys=True) for run in runs}
        assert len(found) == 1 and "dirty" not in "".join(found), (key, found)


# ---- that this can fail, and that it computes what it says


def runs(method: str, scores: list[float], modality: str | None = None, **more: Any) -> list[dict[str, Any]]:
    rest = {"probes": {}, "missing": {}, "calibration": {}, "tuned": {}, "environment": {}, "seconds": 1.0}
    return [
        {"method": method, "modality": modality, "seed": seed, "test": {"accuracy": score}, **rest, **more}
        for seed, score in enumerate(scores)
    ]


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(result_tables, "RESULTS", tmp_path)
    (tmp_path / "mine").mkdir()
    all_runs = [
        *runs("joint", [0.5, 0.6, 0.7], missing={"0.5": 0.25}, environment={"peak_memory_mib": 1999.6}),
        *runs("dgl", [0.6, 0.7, 0.9], tuned={"encoder_learning_rate": "1e-4"}, calibration={"fused": 0.1}),
        *runs("adaptive_dgl", [0.62, 0.7, 0.8]),
        *runs("unimodal", [0.4, 0.5, 0.6], modality="image", probes={"image": 0.55}),
        *runs("unimodal", [0.3, 0.3, 0.3], modality="text", probes={"text": 0.35}),
    ]
    (tmp_path / "mine" / "comparison.json").write_text(json.dumps({"metric": "accuracy", "runs": all_runs}))
    columns = "fused | image alone | text probe | 50 % missing | ECE | MiB | tuned | fused - joint"
    by_task = "joint | dgl - joint | adaptive_dgl - better"
    tables = [f"<!-- table: mine | {columns} -->", "<!-- end -->", f"<!-- tasks: mine | {by_task} -->"]
    return written_anew("\n".join(["before", *tables, "<!-- end -->", "after"]))


def test_cells_are_computed_from_the_runs(page: str) -> None:
    lines = page.splitlines()
    assert lines[0] == "before" and lines[-1] == "after" and written_anew(page) == page
    assert lines[4] == "| trained alone (`unimodal`) | – | .500 ± .100 | .350 ± .000 | – | – | – | – | – |"
    assert lines[5] == "| `joint` | .600 ± .100 | – | – | .250 ± .000 | – | 2000 ± 0 | – | – |"
    # differences .1, .1, .2: mean .133, deviation .0577; t(.975, 2) = 4.303, so .133 ± 4.303 * .0577 / 3 ** .5
    assert lines[6] == "| **`dgl`** | .733 ± .153 | – | – | – | .100 ± .000 | – | 1e-4 | +13.3 (-1.0 to +27.7) |"
    # differences to dgl +2, 0, -10 points: mean -2.67, deviation 6.43, over 3 ** .5 is 3.71: within one standard error
    assert lines[-3] == "| `mine` | .600 ± .100 | +13.3 (-1.0 to +27.7) | -2.7 ± 3.7 (`dgl`) |"


def test_less_than_one_standard_error_below_is_said() -> None:
    of = {"joint": runs("joint", [0.9, 0.8]), "dgl": runs("dgl", [0.7, 0.7]), "mine": runs("mine", [0.85, 0.77])}
    assert result_tables.against_the_better(of, "mine", "accuracy") == "-4.0 ± 1.0 (`joint`) **less**"


@pytest.mark.parametrize(("right", "wrong"), [(".733", ".734"), ("+27.7", "+27.6"), ("1e-4", "2e-4")])
def test_another_number_would_be_found(page: str, right: str, wrong: str) -> None:
    assert page.count(right) and written_anew(page.replace(right, wrong)) == page


def test_no_column_is_made_up(page: str) -> None:
    with pytest.raises(ValueError, match="There is no column 'luck'"):
        written_anew(page.replace("| MiB |", "| luck |"))


def test_every_table_with_spreads_is_written_by_the_tool() -> None:
    """In the README: a table with `±` that stands between no comments would be checked by nothing."""
    rest = TABLE.sub("", (RESULTS.parents[1] / "README.md").read_text(encoding="utf-8"))
    assert re.findall(r"^\|.*±.*\|$", rest, flags=re.MULTILINE) == []
