"""What happened to a checkpoint's files since they were written is noticed before training resumes from them."""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_dgl.training import manifest
from hf_dgl.training.checkpoints import amended, fault, newest_complete, rotate, to_resume
from hf_dgl.training.manifest import MANIFEST, damage, read_manifest, write_manifest
from hf_dgl.training.trainer import DGLTrainer
from tests.tiers import slow_but
from tests.training.test_trainer import Rows, make


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    make(folder, save_strategy="steps", save_steps=2, max_steps=2).train()
    return folder / "checkpoint-2"


@pytest.fixture
def folder(checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(checkpoint, tmp_path / "checkpoint-2")


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 1 << place % 8
    path.write_bytes(content)


def test_a_fresh_checkpoint_is_whole(folder: Path) -> None:
    found = read_manifest(folder)
    assert found is not None and fault(folder) is None
    files = {path.name for path in folder.rglob("*") if path.is_file()} - {MANIFEST, "README.md"}
    assert {Path(name).name for name in found["files"]} == files >= {"model.safetensors", "optimizer.pt"}
    assert found["settings"]["method"] == "dgl" and found["settings"]["rows"] == 24


@pytest.mark.parametrize(
    "name",
    slow_but("model.safetensors", of=["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", MANIFEST]),
)
@pytest.mark.parametrize("small", [0, 4 * 2**20], ids=["by its table of contents", "as a whole"])
def test_a_flipped_bit_is_found_wherever_it_is(folder: Path, monkeypatch: Any, name: str, small: int) -> None:
    monkeypatch.setattr(manifest, "_SMALL", small)
    settings = read_manifest(folder)["settings"]  # type: ignore[index]
    write_manifest(folder, settings)
    whole = (folder / name).read_bytes()
    before = torch.load(folder / name, weights_only=False) if name.endswith((".pt", ".pth")) else None
    for place in random.Random(0).sample(range(len(whole)), 40):
        flip(folder / name, place)
        if fault(folder) is None:  # then it must not matter
            assert name == MANIFEST or small == 0
            if name == MANIFEST:
                assert json.loads(whole)["files"] == read_manifest(folder)["files"]  # type: ignore[index]
            else:
                assert repr(torch.load(folder / name, weights_only=False)) == repr(before)
        (folder / name).write_bytes(whole)
    assert fault(folder) is None


def damaged(change: Callable[[Path], Any], words: str) -> Any:
    return pytest.param(change, words, id=words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        damaged(lambda folder: (folder / "scheduler.pt").unlink(), "scheduler.pt is missing"),
        damaged(lambda folder: (folder / "rng_state.pth").unlink(), "rng_state.pth is missing"),
        damaged(lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        damaged(lambda folder: (folder / "config.json").unlink(), "config.json is missing"),
        damaged(lambda folder: (folder / MANIFEST).unlink(), f"{MANIFEST}, which is written last, is missing"),
        damaged(lambda folder: (folder / MANIFEST).write_text("[]"), f"{MANIFEST} is damaged"),
        damaged(lambda folder: (folder / "trainer_state.json").write_text("{}"), "it lacks global_step"),
        damaged(lambda folder: (folder / "trainer_state.json").write_text("[]"), "it holds a list in place of"),
        damaged(lambda folder: (folder / "trainer_state.json").write_text("7"), "it holds a int in place of"),
        damaged(
            lambda folder: shutil.copy(folder / "scheduler.pt", folder / "rng_state.pth"), "rng_state.pth is damaged"
        ),
    ],
)
def test_what_is_missing_or_another(folder: Path, change: Callable[[Path], Any], words: str) -> None:
    change(folder)
    assert words in str(fault(folder))
    with pytest.raises(ValueError, match="Cannot resume from the checkpoint") as caught:
        to_resume(str(folder), folder.parent)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="There is no complete checkpoint"):
        to_resume(True, folder.parent)


@pytest.mark.parametrize("name", ["scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_of_another_trainer_needs_all_of_its_state(folder: Path, name: str) -> None:
    """Without manifest: of `transformers.Trainer`, or of an older release."""
    (folder / MANIFEST).unlink()
    state = json.loads((folder / "trainer_state.json").read_text())
    state["stateful_callbacks"] = {}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    assert fault(folder) is None
    (folder / name).unlink()
    assert fault(folder) == f"{name} is missing"


def test_the_newest_whole_one_is_resumed(folder: Path) -> None:
    newer = shutil.copytree(folder, folder.with_name("checkpoint-4"))
    flip(newer / "model.safetensors", -20)
    assert to_resume(True, folder.parent) == str(folder)
    assert not newer.exists() and newer.with_name("_incomplete-checkpoint-4").exists()


def test_a_card_may_be_edited(folder: Path) -> None:
    (folder / "README.md").write_text("# Mine")
    assert fault(folder) is None


@pytest.mark.slow
def test_a_damaged_best_model_is_not_loaded_at_the_end(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 3}
    trainer = make(tmp_path, eval_dataset=Rows(8, seed=1), load_best_model_at_end=True, **settings)
    finish = trainer._load_best_model

    def damage_it_first() -> None:
        flip(Path(str(trainer.state.best_model_checkpoint)) / "model.safetensors", -20)
        finish()

    trainer._load_best_model = damage_it_first  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="The best model was to be loaded from .* model.safetensors is damaged"):
        trainer.train()


def test_the_best_model_of_a_run_that_was_moved(tmp_path: Path) -> None:
    settings = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "max_steps": 2}
    settings |= {"eval_dataset": Rows(8, seed=1), "load_best_model_at_end": True}
    trainer = make(tmp_path / "here", **settings)
    trainer.train()
    (tmp_path / "here").rename(tmp_path / "there")
    again = make(tmp_path / "there", **settings)
    again.train(resume_from_checkpoint=True)
    assert Path(str(again.state.best_model_checkpoint)).parent == tmp_path / "there"
    best = load_file(Path(str(again.state.best_model_checkpoint)) / "model.safetensors")
    assert all(torch.equal(best[name], value) for name, value in again.model.state_dict().items() if name in best)


def test_writing_it_costs_little(tmp_path: Path) -> None:
    """Below 2 % of a save; here with a wide margin, since other processes run beside the tests."""
    tensors = {str(index): torch.randn(1024, 1024) for index in range(24)}
    from safetensors.torch import save_file

    begun = time.process_time()
    save_file(tensors, tmp_path / "model.safetensors")
    torch.save([tensors, {name: tensor + 1 for name, tensor in tensors.items()}], tmp_path / "optimizer.pt")
    saved = time.process_time()
    write_manifest(tmp_path, {})
    assert time.process_time() - saved < 0.1 * (saved - begun)
    assert json.loads((tmp_path / MANIFEST).read_text())["files"]["optimizer.pt"]["checksum"].startswith("zip:")
    assert damage(tmp_path) is None


# ---- rotation ----


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def test_dates_do_not_decide_what_is_deleted(tmp_path: Path, monkeypatch: Any) -> None:
    """Upstream deletes each new checkpoint where the old ones seem to be of tomorrow."""
    make(tmp_path, save_strategy="steps", save_steps=1, max_steps=2).train()
    tomorrow = time.time() + 86_400
    for folder in tmp_path.glob("checkpoint-*"):
        os.utime(folder, (tomorrow, tomorrow))
    trainer = make(tmp_path, save_strategy="steps", save_steps=1, save_total_limit=2, max_steps=4)
    trainer.train(resume_from_checkpoint=True)
    assert names(tmp_path) == ["checkpoint-3", "checkpoint-4"]


@pytest.mark.parametrize(
    ("there", "limit", "newest", "best", "left"),
    [
        ([1, 2, 3], 2, 3, None, [2, 3]),
        ([1, 2, 10], 2, 10, 1, [1, 10]),
        ([1, 2, 10], 1, 10, 1, [1, 10]),
        ([90, 100, 1], 1, 1, None, [1]),  # of an earlier run that got further
        ([90, 100, 1, 2], 3, 2, None, [1, 2, 100]),
        ([1, 2, 3], None, 3, None, [1, 2, 3]),
    ],
)
def test_rotation(tmp_path: Path, there: list[int], limit: Any, newest: int, best: Any, left: list[int]) -> None:
    for step in there:
        (tmp_path / f"checkpoint-{step}").mkdir()
    kept = {str(tmp_path / f"checkpoint-{newest}"), None if best is None else str(tmp_path / f"checkpoint-{best}")}
    rotate(tmp_path, limit, kept)
    assert sorted(int(name.rpartition("-")[2]) for name in names(tmp_path)) == left


@pytest.mark.slow
def test_a_new_run_in_an_old_folder_keeps_its_own(tmp_path: Path) -> None:
    make(tmp_path, save_strategy="steps", save_steps=4, max_steps=4).train()
    trainer: DGLTrainer = make(tmp_path, save_strategy="steps", save_steps=1, save_total_limit=1, max_steps=2)
    trainer.train()
    assert names(tmp_path) == ["checkpoint-2"] and newest_complete(tmp_path) == str(tmp_path / "checkpoint-2")


# ---- a checkpoint that is amended at the end of an epoch ----


@pytest.mark.parametrize("moved", [None, 0, 1, 2, 3])
def test_amending_is_done_or_not_whenever_it_is_killed(folder: Path, monkeypatch: Any, moved: int | None) -> None:
    """None: killed before all is written; else: when so many files are at their place."""
    settings = read_manifest(folder)["settings"]  # type: ignore[index]
    before = (folder / "trainer_state.json").read_text()
    after = before.replace('"best_metric": null', '"best_metric": 0.5')
    count, replace = 0, os.replace

    def dies(source: Any, target: Any) -> None:
        nonlocal count
        if Path(target).parent == folder:
            count += 1
            if count > moved:  # type: ignore[operator]
                raise KeyboardInterrupt
        replace(source, target)

    with pytest.raises(KeyboardInterrupt), amended(folder, settings, True, lambda: None) as draft:
        Path(draft, "trainer_state.json").write_text(after)
        torch.save({"another": 1}, Path(draft, "rng_state.pth"))
        if moved is None:
            Path(draft, "scheduler.pt").write_bytes(b"half")
            raise KeyboardInterrupt
        monkeypatch.setattr(os, "replace", dies)
        if moved == 3:
            monkeypatch.setattr(shutil, "rmtree", lambda path: dies(path, folder / "removed"))
    monkeypatch.undo()
    assert fault(folder) is None
    assert (folder / "trainer_state.json").read_text() == (before if moved is None else after) and after != before
    assert not (folder / "_amended").exists()
