from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_dgl.analysis.comparison.result import Comparison, Result, Variant
from hf_dgl.analysis.comparison.run import save_comparison

JOINT, DGL = Variant("joint"), Variant("dgl")


def result(method: str, seed: int, fused: float, image: float = 0.6, text: float = 0.5, **more: Any) -> Result:
    test = {"accuracy": fused, "accuracy_image": image, "accuracy_text": text, "f1": 0.1, "modality_gap": 0.1}
    values: dict[str, Any] = {"settings": (), "modality": None, "folder": f"out/{method}-{seed}", "test": test}
    return Result(method, seed, **{**values, "seconds": 3.14, **more})


@pytest.fixture
def comparison() -> Comparison:
    gains = [0.03, 0.04, 0.02]
    results = [result("joint", seed, 0.7 + 0.01 * seed) for seed in range(3)]
    results += [result("dgl", seed, 0.7 + 0.01 * seed + gains[seed]) for seed in range(3)]
    for seed in range(3):
        test = {"accuracy": 0.65 + 0.001 * seed}
        results.append(result("unimodal", seed, 0, modality="image", test=test, folder=f"out/u-{seed}"))
    return Comparison("recipes/my.yaml", results, selection="Scored is the best.")


def cells(comparison: Comparison, row: int = 0) -> dict[str, str]:
    table = comparison.table()
    return dict(zip(table.columns, table.rows[row], strict=True))


def test_table(comparison: Comparison) -> None:
    assert cells(comparison) == {
        "method": "joint",
        "accuracy fused": "0.710 ± 0.010",
        "image alone": "0.600 ± 0.000",
        "image trained alone": "0.651 ± 0.001",
        "text alone": "0.500 ± 0.000",
        "modality gap": "0.100 ± 0.000",
        "seconds": "3.1",
        "seeds": "3",
    }
    assert cells(comparison, 1)["accuracy fused"] == "0.740 ± 0.010"


def test_differences_to_joint(comparison: Comparison) -> None:
    table = comparison.differences()
    assert table.columns == ["method", "accuracy", "minus joint", "95 % interval", "p (t)", "p (Wilcoxon)", "so"]
    by_score = {(row[0], row[1]): row[2:] for row in table.rows}
    assert set(by_score) == {
        ("dgl", "fused"),
        ("dgl", "image alone"),
        ("dgl", "text alone"),
        ("unimodal", "image alone"),
    }
    assert by_score["dgl", "fused"] == ["+0.030", "+0.005 to +0.055", "0.035", "0.250", "better"]
    assert by_score["dgl", "text alone"][-1] == "equal"
    assert by_score["unimodal", "image alone"][0] == "+0.051"  # what joint training costs the encoder


def test_only_seeds_that_both_have_are_compared(comparison: Comparison) -> None:
    comparison.results = [r for r in comparison.results if (r.method, r.seed) != ("joint", 1)]
    found = comparison.against_joint(DGL, "accuracy")
    assert found is not None and found.num_seeds == 2 and found.verdict() == "too few seeds"
    comparison.results = [r for r in comparison.results if r.method != "joint"]
    assert comparison.against_joint(DGL, "accuracy") is None and not comparison.differences().rows
    assert "Against joint" not in comparison.to_markdown()


def test_one_seed_claims_nothing(comparison: Comparison) -> None:
    comparison.results = [r for r in comparison.results if r.seed == 0]
    assert cells(comparison)["accuracy fused"] == "0.700"
    assert {row[-1] for row in comparison.differences().rows} == {"too few seeds"}


def test_lower_is_better_for_errors() -> None:
    def of(method: str, seed: int, mae: float) -> Result:
        return result(method, seed, 0, test={"mae": mae, "mae_image": 2.0, "pearson": 0.1})

    results = [of("joint", seed, 1.0 + 0.01 * seed) for seed in range(3)]
    results += [of("dgl", seed, 0.5 + 0.02 * seed) for seed in range(3)]
    comparison = Comparison("my.yaml", results)
    assert comparison.title == "MAE" and comparison.modalities == ["image"]
    assert comparison.differences().rows[0][-1] == "better"


@pytest.mark.parametrize("metric", ["map", "mae", "loss"])
def test_other_metrics(metric: str) -> None:
    comparison = Comparison("my.yaml", [result("dgl", 0, 0, test={"loss": 1.0, metric: 0.5, f"{metric}_text": 0.4})])
    assert comparison.metric == metric
    assert cells(comparison)["text alone"] == "0.400"


def test_contributions_and_missing_modalities_of_three() -> None:
    names = ("image", "audio", "text")
    test = {"accuracy": 0.9, **{f"accuracy_{name}": 0.5 for name in names}}
    subsets = {"none": 0.1, "image": 0.5, "image+audio": 0.7, "audio+text": 0.8, "image+text": 0.75}
    shares = {"image": 0.2, "audio": 0.3, "text": 0.3}
    found = cells(Comparison("m.yaml", [result("dgl", 0, 0, test=test, contributions=shares, subsets=subsets)]))
    assert [found[f"without {name}"] for name in names] == ["0.800", "0.750", "0.700"]
    assert [found[f"{name} contributes"] for name in names] == ["0.200", "0.300", "0.300"]


def test_probes_beside_those_of_encoders_trained_alone() -> None:
    results = [result("joint", seed, 0.7, probes={"image": 0.6 + 0.1 * seed, "text": 0.5}) for seed in range(3)]
    results.append(result("unimodal", 0, 0, modality="image", test={"accuracy": 0.8}, probes={"image": 0.81}))
    comparison = Comparison("my.yaml", results)
    found = cells(comparison)
    assert found["image probe"] == "0.700 ± 0.100" and found["image probe, trained alone"] == "0.810"
    assert found["text probe"] == "0.500 ± 0.000" and "text probe, trained alone" not in found
    assert found["image trained alone"] == "0.800" and "*probe*" in comparison.to_markdown()


def sweep() -> Comparison:
    results = []
    for seed in range(3):
        results.append(result("joint", seed, 0.5, validation={"accuracy": 0.5}))
        for alpha, fused, validation in [("1", 0.6, 0.7), ("10", 0.9, 0.65), ("2", 0.7, 0.6)]:
            settings = (("alpha", alpha),)
            results.append(result("dgl", seed, fused, settings=settings, validation={"accuracy": validation}))
    return Comparison("my.yaml", results)


def test_sweep_by_value_chosen_by_validation_not_by_test() -> None:
    comparison = sweep()
    rows = {row[1]: row for row in comparison.table().rows}
    assert list(rows) == ["–", "1", "10", "2"]
    assert rows["1"][2] == "0.700 ± 0.000 *" and not rows["10"][2].endswith("*")
    assert "`*`: what the validation split would choose" in comparison.to_markdown()


def test_files(comparison: Comparison, tmp_path: Path) -> None:
    comparison.failures["dgl-7"] = "out of luck"
    save_comparison(comparison, tmp_path)
    found = json.loads((tmp_path / "comparison.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert found["metric"] == "accuracy" and len(found["runs"]) == 9 and found["failures"] == {"dgl-7": "out of luck"}
    joint, dgl = found["summary"]
    assert joint["against_joint"] == {} and dgl["test"]["accuracy"]["mean"] == pytest.approx(0.74)
    assert dgl["against_joint"]["accuracy"]["difference"] == pytest.approx(0.03)
    assert dgl["against_joint"]["accuracy"]["verdict"] == "better"
    assert dgl["against_joint"]["accuracy_image"]["p_t"] is None
    assert [entry["modality"] for entry in found["trained_alone"]] == ["image"]
    text = (tmp_path / "comparison.md").read_text()
    assert "| joint  | 0.710 ± 0.010" in text and "`dgl-7`:" in text and "out of luck" in text
    widths = [{len(line) for line in block.splitlines()} for block in text.split("\n\n") if block.startswith("|")]
    assert [len(found) for found in widths] == [1, 1]  # aligned
    assert (tmp_path / "comparison.png").read_bytes().startswith(b"\x89PNG")


def test_a_bar_in_a_value_does_not_break_the_table() -> None:
    comparison = Comparison("my.yaml", [result("dgl", 0, 0.5, settings=(("learning_rate_mapping", "a|b=1"),))])
    assert "a\\|b=1 " in comparison.to_markdown()


def test_picture_of_a_sweep(tmp_path: Path) -> None:
    save_comparison(sweep(), tmp_path)
    assert (tmp_path / "comparison.png").stat().st_size > 1000


def test_a_picture_that_fails_costs_a_sentence_only(comparison: Comparison, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    save_comparison(comparison, tmp_path)
    assert not (tmp_path / "comparison.png").exists()
    assert "There is no comparison.png: " in (tmp_path / "comparison.md").read_text()


def test_nan_in_a_metric_is_left_out(comparison: Comparison) -> None:
    comparison.results.append(result("dgl", 9, math.nan))
    assert comparison.spread(DGL, "accuracy").num_seeds == 3


# ---- what was asked for beside the metrics -------------------------------------------------------------------------


def made_at(commit: str, memory: float = 900.0, cpu: str = "a", **more: Any) -> dict[str, Any]:
    machine = {"cpu": cpu, "cores": 2, "threads": 1, "accelerator": None}
    return {"commit": commit, "machine": machine, "peak_memory_mib": memory, **more}


def asked(commits: Any = ("c" * 40,)) -> Comparison:
    results = []
    for seed in range(3):
        for method, gain in (("joint", 0.0), ("dgl", 0.05 + 0.01 * seed)):
            missing = {"0.5": 0.6 + gain, "0.125": 0.65 + gain}
            calibration = {"fused": 0.2 - gain, "image": 0.1, "text": 0.1}
            environment = made_at(commits[seed % len(commits)], 900 + seed)
            more: Any = {"missing": missing, "calibration": calibration, "environment": environment}
            results.append(result(method, seed, 0.7, probes={"image": 0.5 + gain}, **more))
    alone: Any = {"test": {"accuracy": 0.6}, "calibration": {"fused": 0.3}, "environment": made_at(commits[0], 500)}
    results.append(result("unimodal", 0, 0, modality="image", **alone))
    return Comparison("my.yaml", results)


def test_topics_have_tables_with_differences() -> None:
    comparison = asked()
    topics = {topic.key: topic for topic in comparison.topics()}
    assert list(topics) == ["probes", "missing", "calibration", "cost"]
    missing = comparison.topic_table(topics["missing"])
    assert missing.columns == ["method", "12.5 % of rows", "50 % of rows"]
    assert missing.rows[0] == ["joint", "0.650 ± 0.000", "0.600 ± 0.000"] and len(missing.rows) == 2
    (difference,) = comparison.topic_differences(topics["missing"]).rows
    assert difference == ["dgl minus joint", *["+0.060 (+0.035 to +0.085)"] * 2]
    costs = comparison.topic_table(topics["cost"])
    assert costs.columns == ["method", "seconds", "peak memory, MiB"]
    assert ["joint", "3 ± 0", "901 ± 1"] in costs.rows and costs.rows[-1][0] == "unimodal: image"
    assert not comparison.topic_differences(topics["cost"]).rows
    text = comparison.to_markdown()
    for heading in ("## Linear probes", "## Modalities missing", "## Calibration", "## Cost"):
        assert heading in text
    assert text.count("dgl minus joint") == 3 and "different commits" not in text


def test_topics_in_json() -> None:
    (joint, dgl) = asked().to_dict()["summary"]
    assert joint["missing"]["50 % of rows"]["against_joint"] is None
    assert dgl["missing"]["50 % of rows"]["against_joint"]["verdict"] == "better"
    assert dgl["calibration"]["fused"]["against_joint"]["verdict"] == "better"  # a smaller error
    assert dgl["cost"]["peak memory, MiB"]["mean"] == pytest.approx(901)
    assert asked().to_dict()["runs"][0]["environment"]["commit"] == "c" * 40


def test_rows_of_different_commits_and_machines_are_told(comparison: Comparison) -> None:
    text = asked(["a" * 40, "b" * 40 + "+dirty", "a" * 40]).to_markdown()
    assert (
        "different commits: aaaaaaaa (joint-0, dgl-0, joint-2, dgl-2, unimodal-0); bbbbbbbb+dirty (joint-1, " in text
    )
    assert "`+dirty`: the source had changes" in text and "different machines" not in text
    other = asked()
    other.results[0] = result("joint", 0, 0.7, environment=made_at("c" * 40, cpu="b"))
    assert "different machines: b, 1 threads (joint-0); a, 1 threads (" in other.to_markdown()
    assert "different" not in comparison.to_markdown()  # of runs that say nothing, nothing is said
