"""Twenty kills at random (seeded) moments over the ways of training: resumed, each run ends as if there had been none.

As in `test_faults.py`, the runs are those of the command line, forked from one process (`worker.py`).
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.faults.test_faults import RESUME, Runs, leaves, without_times

pytestmark = pytest.mark.slow

BEST = "--eval_strategy=steps --eval_steps=2 --load_best_model_at_end --metric_for_best_model=loss"
VARIANTS: dict[str, str] = {  # how it is trained, beside the recipe of `Runs`
    "dgl": "",
    "adaptive_dgl": "--method=adaptive_dgl --logging_steps=5",
    "ogm_ge": "--method=ogm_ge --optim=sgd --logging_steps=5 --log_gradients",
    "lora": "--encoders=null --model_name_or_path={base} --peft r=2 modules=all",
    "streaming": "--streaming --shuffle_buffer_size=8",
    "accumulation": "--gradient_accumulation_steps=2 --per_device_train_batch_size=4 --logging_steps=4",
    "workers": "--dataloader_num_workers=2",
    "best_model": BEST,
    "every_step": "--save_steps=1 --logging_steps=7",
}
STEPS, SAVED_EVERY, NUM_KILLS = 8, 2, 20
FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


def faults(seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Variant -> where each of its runs dies; further on with every kill, so that each begins where the last died."""
    rng = random.Random(seed)
    names = [*VARIANTS, *VARIANTS, *rng.sample(sorted(VARIANTS), NUM_KILLS - 2 * len(VARIANTS))]
    moments: dict[str, list[float]] = {}
    for name in names:
        moments.setdefault(name, []).append(rng.uniform(1, STEPS))
    found: dict[str, list[dict[str, Any]]] = {}
    for name, times in moments.items():
        for moment in sorted(times):
            step = int(moment)
            checkpoint = f"checkpoint-{-(-step // SAVED_EVERY) * SAVED_EVERY}"
            kind = rng.choice(["step", "file", "manifest"])
            file = rng.choice(FILES if name != "lora" else FILES[1:])
            found.setdefault(name, []).append(
                {"kill_in_step": step}
                if kind == "step"
                else {"kill_in_file": f"{checkpoint}/{file}"}
                if kind == "file"
                else {"kill_before_replacing": f"{checkpoint}/manifest.json"}
            )
    return found


KILLS = faults()


def started(name: str, folder: Path) -> Runs:
    """The uninterrupted run of a variant, and the one that is killed."""
    runs = Runs(folder)
    if name == "lora":
        runs.add("base", "--max_steps=1", "--save_strategy=no")
    common = [f"--max_steps={STEPS}", f"--save_steps={SAVED_EVERY}", "--logging_steps=3"]
    own = [*common, *VARIANTS[name].format(base=folder / "base").split()]
    runs.add("whole", *own)
    for index, fault in enumerate(KILLS[name]):
        runs.add("killed", *own, *([RESUME] if index else []), fault=fault)
    runs.add("killed", *own, RESUME)
    runs.start()
    return runs


def test_there_are_twenty() -> None:
    assert sum(map(len, KILLS.values())) == NUM_KILLS and set(KILLS) == set(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_killed_and_resumed_ends_as_the_uninterrupted_run(tmp_path: Path, name: str) -> None:
    runs = started(name, tmp_path)
    assert runs.codes("whole") == [0], runs.output("whole")
    *killed, last = runs.codes("killed")
    assert last == 0, runs.output("killed")
    assert killed == [-9] * len(KILLS[name]), (KILLS[name], killed, runs.output("killed", 0))
    whole, resumed = tmp_path / "whole", tmp_path / "killed"
    weights = sorted(
        path.relative_to(whole) for path in whole.glob("**/*.safetensors") if "checkpoint-" not in str(path)
    )
    assert weights
    for path in weights:
        assert (whole / path).read_bytes() == (resumed / path).read_bytes(), path
    scores = [json.loads((out / "metrics.json").read_text()) for out in (whole, resumed)]
    assert [*map(without_times, scores[0].values())] == [*map(without_times, scores[1].values())]
    histories = [json.loads((out / "trainer_state.json").read_text())["log_history"] for out in (whole, resumed)]
    assert leaves([*map(without_times, histories[0])]) == leaves([*map(without_times, histories[1])])
    assert not list(Path(resumed).glob("checkpoint-*/*.draft"))
