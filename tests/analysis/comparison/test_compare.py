"""What is run, where, and what happens to runs that fail or are there already."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from hf_dgl.analysis.comparison import run as module
from hf_dgl.analysis.comparison.plan import plan
from hf_dgl.analysis.comparison.result import Variant
from hf_dgl.analysis.comparison.run import compare, environments, visible_devices
from hf_dgl.data import CrossModalCollator
from hf_dgl.recipe.environment import commit
from hf_dgl.recipe.finetune import finetune
from hf_dgl.recipe.recipe import load_recipe, make_recipe
from tests.processes import hf_dgl_in_a_process
from tests.recipes import tiny_recipe


def write(folder: Path, *modalities: str, **values: Any) -> str:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(folder / "out", *modalities, **values), sort_keys=False))
    return str(path)


def call_forked(words: Any, out: Path, log: Path, *_: Any) -> None:
    """`hf-dgl` in a process that is forked from one with its libraries loaded."""
    code = hf_dgl_in_a_process(words, out, log)
    if code:
        raise RuntimeError(f"{log.read_text()}\n(exit code {code}; all of it: {log})")


@pytest.fixture(scope="module", params=["forked", pytest.param("processes", marks=pytest.mark.slow)])
def real(request: Any, tmp_path_factory: Any) -> Any:
    """A comparison of real runs, one of which fails."""
    folder = tmp_path_factory.mktemp("real")
    arguments = (write(folder), ["joint", "dgl"], [0], folder / "out")
    told: list[Any] = []
    sweeps = {"alpha": ["1", "video=1"]}  # what the model has is only known once it is built
    settings: dict[str, Any] = {"jobs": 2, "sweeps": sweeps, "contributions": True, "probes": True}
    settings |= {"missing": [0.5], "calibration": True}
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "forked":
            patch.setattr(module, "_call", call_forked)
        comparison = compare(*arguments, **settings, progress=lambda *words: told.append(words))
    return arguments, settings, comparison, told


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """`hf-dgl` replaced by something that writes metrics: .5 + a tenth per seed, and a tenth more for dgl."""
    made: list[Any] = []

    def call(words: Any, out: Path, log: Path, place: Any, *_: Any) -> None:
        made.append((words, dict(place)))
        recipe = load_recipe(words[1], words[2:])
        method, seed = recipe.training.method, recipe.training.seed
        if float(recipe.training.learning_rate) == 13:
            raise RuntimeError(f"unlucky {method}")
        score = 0.5 + 0.1 * seed + 0.1 * (method == "dgl")
        test = {"accuracy": score, "accuracy_image": 0.4, "accuracy_text": 0.3, "modality_gap": 0.1}
        if len(recipe.model.encoders or {}) == 1:
            test = {"accuracy": 0.45}
        metrics = {"test": test, "validation": {"accuracy": score - 0.01}, "train": {"train_runtime": 2.0}}
        (out.parent / "metrics.json").write_text(json.dumps(metrics))

    monkeypatch.setattr(module, "_call", call)
    return made


# ---- real runs -----------------------------------------------------------------------------------------------------


def test_every_run_is_gathered(real: Any) -> None:
    (_, _, _, folder), _, comparison, told = real
    assert [Path(result.folder).name for result in comparison.results] == ["joint-0", "dgl-alpha=1-0"]
    for result in comparison.results:
        assert result.test == json.loads((Path(result.folder) / "metrics.json").read_text())["test"]
        assert result.seconds > 0
    assert told[0] == ("", 0, 3) and told[-1][1:] == (3, 3)
    assert {name for name, _, _ in told[1:]} == {"joint-0", "dgl-alpha=1-0", "dgl-alpha=video=1-0"}
    assert {"comparison.json", "comparison.md", "comparison.png"} <= set(os.listdir(folder))


def test_a_failed_run_is_named_and_the_others_go_on(real: Any) -> None:
    (_, _, _, folder), _, comparison, _ = real
    ((name, message),) = comparison.failures.items()
    assert name == "dgl-alpha=video=1-0"
    assert "`alpha` names an unknown modality 'video'" in message and "exit code 2" in message and "run.log" in message
    assert "`dgl-alpha=video=1-0`:" in (folder / "comparison.md").read_text()
    assert json.loads((folder / "comparison.json").read_text())["failures"] == comparison.failures


def test_contributions_sum_to_what_the_model_is_better_than_a_constant(real: Any) -> None:
    _, _, comparison, _ = real
    for result in comparison.results:
        assert list(result.subsets) == ["none", "image", "text", "image+text"]
        assert result.subsets["image+text"] == pytest.approx(result.test["accuracy"])
        assert result.subsets["text"] == pytest.approx(result.test["accuracy_text"])
        gained = result.test["accuracy"] - result.subsets["none"]
        assert sum(result.contributions.values()) == pytest.approx(gained)
    assert {"image contributes", "text contributes"} <= set(comparison.table().columns)


def test_probes_are_gathered(real: Any) -> None:
    _, _, comparison, _ = real
    for result in comparison.results:
        assert set(result.probes) == {"image", "text"} and all(0 <= score <= 1 for score in result.probes.values())
    assert {"image probe", "text probe"} <= set(comparison.table().columns)


def test_robustness_cost_and_provenance_are_gathered(real: Any) -> None:
    _, _, comparison, _ = real
    for result in comparison.results:
        assert set(result.missing) == {"0.5"} and 0 <= result.missing["0.5"] <= 1
        assert set(result.calibration) == {"fused", "image", "text"}
        assert result.peak_memory > 50 and result.environment["commit"] == commit()
        assert not list(Path(result.folder).glob("*.partial"))
    assert [topic.key for topic in comparison.topics()] == ["probes", "missing", "calibration", "cost"]


def test_complete_runs_are_not_repeated(real: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, settings, comparison, _ = real
    started: list[Any] = []

    def popen(command: Any, **_: Any) -> None:
        started.append(command)
        raise OSError("nothing is started here")

    monkeypatch.setattr(subprocess, "Popen", popen)
    again = compare(*arguments, **settings)
    assert again.results == comparison.results
    assert len(started) == 1 and "video=1" in " ".join(started[0])  # the failed one is tried again


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_a_comparison_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: Any, how: signal.Signals) -> None:
    recipe, folder = write(tmp_path, max_steps=100_000), tmp_path / "out" / "joint-0"  # it will not end by itself
    words = ["compare", recipe, "--methods", "joint", "--seeds", "0", "--output_dir", str(folder.parent)]
    process = subprocess.Popen([sys.executable, "-m", "hf_dgl", *words], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (children := psutil.Process(process.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(how)
    assert process.wait(30) == (143 if how == signal.SIGTERM else -how)
    if how == signal.SIGKILL:  # its run goes on alone, and nobody else may work in that folder
        with open(folder / ".lock", "w") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        children[0].kill()
    assert not psutil.wait_procs(children, timeout=20)[1]
    assert not (folder / "complete.yaml").exists()

    def call(words: Any, out: Path, *_: Any) -> None:
        (out.parent / "metrics.json").write_text('{"test": {"accuracy": 1}}')

    monkeypatch.setattr(module, "_call", call)
    assert compare(recipe, ["joint"], [0], folder.parent).results[0].test == {"accuracy": 1}


@pytest.mark.parametrize("delay", [0, 1], ids=["noted", "started_just_now"])
def test_an_interrupted_comparison_leaves_no_process(tmp_path: Path, monkeypatch: Any, delay: float) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Endless(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, command: Any, **settings: Any) -> None:
            super().__init__(["sleep", "100"], **settings)
            started.append(self)
            time.sleep(delay)  # the interruption comes before its thread goes on

    def as_completed(futures: Any) -> Any:
        while not started:
            time.sleep(0.01)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Endless)
    monkeypatch.setattr(module, "as_completed", as_completed)
    with pytest.raises(KeyboardInterrupt):
        compare(write(tmp_path), ["joint"], [0, 1], tmp_path / "out")
    assert [process.wait(20) for process in started] == [-signal.SIGTERM]  # and no second one after it
    assert not list((tmp_path / "out").glob("*/complete.yaml"))


# ---- without processes ---------------------------------------------------------------------------------------------


def test_order_of_the_data_is_the_same_for_every_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    original = CrossModalCollator.__call__

    def collate(self: Any, rows: Any) -> Any:
        seen.append([row["text"] for row in rows])
        return original(self, rows)

    monkeypatch.setattr(CrossModalCollator, "__call__", collate)
    orders = []
    recipe = write(tmp_path, max_eval_samples=8)
    for run in plan(recipe, ["joint", "dgl", "adaptive_dgl", "unimodal"], [3], tmp_path / "runs"):
        if run.modality == "image":
            continue
        seen.clear()
        values = load_recipe(tmp_path / "tiny.yaml", run.words).values
        model = finetune(make_recipe(values)).model
        assert model.config.modalities == (["text"] if run.modality else ["image", "text"])
        orders.append(list(seen))
    assert len(orders) == 4 and all(order == orders[0] for order in orders)


def test_runs_and_their_words(tmp_path: Path) -> None:
    words, sweeps = ["--max_steps", "1"], {"alpha": ["1", "2"]}
    runs = plan(write(tmp_path), ["joint", "dgl", "unimodal"], [0, 7], tmp_path, words, sweeps)
    names = "joint-0 joint-7 dgl-alpha=1-0 dgl-alpha=1-7 dgl-alpha=2-0 dgl-alpha=2-7".split()
    names += [f"unimodal-{name}-{seed}" for seed in (0, 7) for name in ("image", "text")]
    assert sorted(run.folder.name for run in runs) == sorted(names)
    for run in runs:
        recipe = load_recipe(tmp_path / "tiny.yaml", run.words)
        assert recipe.training.seed == run.seed and recipe.training.max_steps == 1
        assert recipe.training.output_dir == str(run.folder)
        assert recipe.training.method == run.method and recipe.training.modality == run.modality
        if run.settings:
            assert recipe.training.alpha == float(dict(run.settings)["alpha"])


def test_what_is_said_of_the_other_modalities_is_taken_out(tmp_path: Path) -> None:
    recipe = write(
        tmp_path,
        alpha={"image": 1.0, "text": 2.0},
        encoder_learning_rate={"image": 1e-3, "text": 1e-4},
        multimodal_to_encoders={"image": 0.5, "text": 0.5},
        column_mapping={"image": "image", "text": "text", "label": "label"},
        freeze=["text"],
        metric_for_best_model="accuracy_text",
    )
    of = {run.modality: run for run in plan(recipe, ["dgl", "unimodal"], [0], tmp_path)}
    image, text = (load_recipe(recipe, of[name].words) for name in ("image", "text"))
    assert image.training.alpha == {"image": 1.0} and text.training.alpha == {"text": 2.0}
    assert image.training.encoder_learning_rate == {"image": 1e-3}
    assert image.training.multimodal_to_encoders is None
    assert image.data.column_mapping == {"image": "image", "label": "label"}
    assert image.training.freeze is None and text.training.freeze == ["text"]
    assert image.training.metric_for_best_model == "accuracy"
    assert text.training.metric_for_best_model == "accuracy_text"
    assert list(image.model.encoders) == ["image"]


def test_sweep_is_crossed_with_methods_and_compared_with_its_own_joint(tmp_path: Path, calls: list[Any]) -> None:
    sweeps = {"alpha": ["1", "2"], "learning_rate": ["1e-3", "1e-4"]}
    comparison = compare(write(tmp_path), ["joint", "dgl"], [0, 1, 2], tmp_path / "out", sweeps=sweeps)
    assert len(calls) == 2 * 3 + 4 * 3
    table = comparison.table()
    assert table.columns[:5] == ["method", "alpha", "learning_rate", "accuracy on validation", "accuracy fused"]
    assert [row[:3] for row in table.rows][:3] == [
        ["joint", "–", "1e-3"],
        ["joint", "–", "1e-4"],
        ["dgl", "1", "1e-3"],
    ]
    assert len(table.rows) == 6 and all(row[-1] == "3" for row in table.rows)
    found = comparison.against_joint(Variant("dgl", (("alpha", "2"), ("learning_rate", "1e-4"))), "accuracy")
    assert found is not None and found.num_seeds == 3 and found.difference == pytest.approx(0.1)
    assert (tmp_path / "out" / "comparison.png").stat().st_size > 1000


def test_only_what_changed_is_run_again(tmp_path: Path, calls: list[Any]) -> None:
    recipe = write(tmp_path)
    compare(recipe, ["joint"], [0], tmp_path / "out")
    compare(recipe, ["joint", "dgl"], [0, 1], tmp_path / "out")
    assert len(calls) == 4
    stale = tmp_path / "out" / "dgl-1" / "checkpoint-3"
    stale.mkdir()
    other = ["--learning_rate", "1"]
    with pytest.raises(ValueError, match=r"holds runs of another recipe, or with other settings: dgl-1"):
        compare(recipe, ["dgl"], [1], tmp_path / "out", other)
    other += ["--overwrite_output_dir", "true"]
    compare(recipe, ["dgl"], [1], tmp_path / "out", other)
    assert len(calls) == 5 and not stale.exists()
    (tmp_path / "out" / "dgl-1" / "complete.yaml").unlink()  # as if it had been killed between metrics and model
    compare(recipe, ["dgl"], [1], tmp_path / "out", other)
    assert len(calls) == 6


def test_failures_without_processes(tmp_path: Path, calls: list[Any]) -> None:
    recipe = write(tmp_path)
    sweeps = {"learning_rate": ["13", "1e-3"]}
    comparison = compare(recipe, ["joint", "dgl"], [0], tmp_path / "out", sweeps=sweeps)
    assert comparison.failures == {
        "joint-learning_rate=13-0": "unlucky joint",
        "dgl-learning_rate=13-0": "unlucky dgl",
    }
    assert len(comparison.results) == 2
    with pytest.raises(RuntimeError, match=r"No run was successful. joint-0 ended with:\nunlucky joint"):
        compare(recipe, ["joint"], [0], tmp_path / "other", ["--learning_rate", "13"])


def test_one_gpu_per_run_in_turn(tmp_path: Path, calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "visible_devices", lambda: ["2", "GPU-abc"])
    recipe = write(tmp_path, use_cpu=False)
    compare(recipe, ["joint", "dgl"], [0, 1, 2], tmp_path / "out")
    assert {place["CUDA_VISIBLE_DEVICES"] for _, place in calls} <= {"2", "GPU-abc"} and len(calls) == 6
    calls.clear()
    compare(recipe, ["joint"], [0], tmp_path / "cpu", ["--use_cpu"])
    assert "CUDA_VISIBLE_DEVICES" not in calls[0][1]


def test_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    assert environments(None, []) == [{"OMP_NUM_THREADS": "8"}]
    assert environments(3, []) == [{"OMP_NUM_THREADS": "2"}] * 3
    assert [place["CUDA_VISIBLE_DEVICES"] for place in environments(None, ["0", "3"])] == ["0", "3"]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in environments(5, ["0", "3"])] == ["0", "3", "0", "3", "0"]
    assert environments(1, ["0", "3"])[0]["CUDA_VISIBLE_DEVICES"] == "0"  # several in one process are refused
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert environments(2, [])[0] == {"OMP_NUM_THREADS": "1"}
    with pytest.raises(ValueError, match="at least 1, got 0"):
        environments(0, [])


def test_visible_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_devices() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 6")
    assert visible_devices() == ["4", "6"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert visible_devices() == []


def test_no_run_is_pushed(tmp_path: Path) -> None:
    recipe = write(tmp_path, push_to_hub=True)
    (run,) = plan(recipe, ["dgl"], [0], tmp_path)
    assert load_recipe(recipe).training.push_to_hub and not load_recipe(recipe, run.words).training.push_to_hub


def test_names_of_folders_differ_as_their_values_do(tmp_path: Path) -> None:
    sweeps = {"metric_for_best_model": ["a/b", "a_b", "a b"]}
    runs = plan(write(tmp_path), ["dgl"], [0], tmp_path, sweeps=sweeps)
    names = [run.folder.name for run in runs]
    assert len(set(names)) == 3 and all("/" not in name and " " not in name for name in names)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"methods": ["jint"]}, "Unknown method 'jint': did you mean 'joint'"),
        ({"seeds": []}, "nothing to compare"),
        ({"methods": ["unimodal"]}, "nothing to compare"),
        ({"overrides": ["--test_split", "null"]}, "no test split"),
        ({"overrides": ["--learning_rat", "1"]}, "Unknown key 'learning_rat'"),
        ({"sweeps": {"learning_rat": ["1"]}}, "Unknown key 'learning_rat'"),
        ({"sweeps": {"learning_rate": ["fast"]}}, "learning_rate: expected a number"),
        ({"sweeps": {"seed": ["1"]}}, "that is what --seeds is for"),
        ({"sweeps": {"alpha": []}}, "no values to sweep"),
        ({"jobs": 0}, "at least 1"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path: Path, calls: list[Any], kwargs: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(write(tmp_path), **{"output_dir": tmp_path / "out", **kwargs})
    assert not calls


def test_a_checkpoint_cannot_be_taken_apart(tmp_path: Path) -> None:
    recipe = write(tmp_path, encoders=None, model_name_or_path="some/checkpoint")
    with pytest.raises(ValueError, match="leave `unimodal` out of --methods"):
        compare(recipe, ["joint", "unimodal"], [0], tmp_path / "out")
