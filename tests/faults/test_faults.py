"""Killed at any moment and resumed, a run ends as the uninterrupted one; full disks and NaN end with a clear message.

The runs of the first half are real: `hf-dgl train` in processes of their own that are killed (SIGKILL), or whose disk
is full (see `tests/faults/worker.py`).
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import SafetensorError
from torch import nn
from transformers import default_data_collator

from hf_dgl.method.methods import METHODS
from hf_dgl.models import CrossModalConfig, CrossModalForSequenceClassification
from hf_dgl.training.checkpoints import fault, newest_complete, replaced_at_once, to_resume
from hf_dgl.training.disk import explaining_a_full_disk
from hf_dgl.training.manifest import write_manifest
from hf_dgl.training.resume import settings_of
from hf_dgl.training.trainer import DGLTrainer
from tests.faults import worker
from tests.oracle import Interleaved, make_toy, toy_batch
from tests.processes import in_a_process
from tests.recipes import tiny_recipe
from tests.tiers import each_once
from tests.tiny import FAMILIES, NUM_LABELS, tiny_model
from tests.training.test_trainer import Rows, arguments, make, same, weights

# 5 steps per epoch; checkpoint-10 is due at the end of an epoch; the learning rate moves and never is 0.
RUN = {
    "max_steps": 12,
    "save_strategy": "steps",
    "save_steps": 2,
    "save_total_limit": 2,
    "eval_strategy": "epoch",
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 5,
}
# Each run is killed again and again, and resumed every time.
KILLS: dict[str, list[dict[str, Any]]] = {
    "killed_in_a_step": [
        {"kill_in_step": 1},  # before the first checkpoint
        {"kill_in_step": 4},
        {"kill_in_step": 8},
        {"kill_in_step": 11},  # the first one of an epoch, right after a checkpoint and an evaluation
    ],
    "killed_in_a_save": [
        {"kill_in_file": "checkpoint-2/optimizer.pt"},  # of the first checkpoint
        {"kill_in_file": "checkpoint-4/model.safetensors"},
        {"kill_in_file": "checkpoint-6/optimizer.pt"},
        {"kill_before_replacing": "checkpoint-6/config.json"},
        {"kill_in_file": "checkpoint-8/rng_state.pth"},
        {"kill_before_replacing": "checkpoint-8/manifest.json"},  # of the last file
        {"kill_in_rotation": "checkpoint-4"},
        {"kill_in_file": "checkpoint-10/trainer_state.json"},
        {"kill_in_file": "killed_in_a_save/model.safetensors"},  # the final model
    ],
}
RESUME = "--resume_from_checkpoint=true"


class Runs:
    """Collects jobs for the worker, and gives their exit codes, outputs and folders afterwards."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.jobs = folder, []
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(yaml.safe_dump({**tiny_recipe(folder / "whole"), **RUN}))

    def add(self, name: str, *words: str, out: str | None = None, **job: Any) -> None:
        self.jobs.append(
            {
                "name": name,
                "words": ["train", str(self.recipe), f"--output_dir={self.folder / (out or name)}", *words],
                "log": str(self.folder / f"{name}-{len(self.jobs)}.log"),
                **job,
            }
        )

    def start(self) -> None:
        path = self.folder / "jobs.json"
        path.write_text(json.dumps(self.jobs))
        in_a_process(worker.work, str(path))
        self.jobs = json.loads(path.read_text())

    def codes(self, name: str) -> list[int | None]:
        return [job["code"] for job in self.jobs if job["name"] == name]

    def output(self, name: str, index: int = -1) -> str:
        return Path([job["log"] for job in self.jobs if job["name"] == name][index]).read_text()


@pytest.fixture(scope="module", params=[pytest.param("all", marks=pytest.mark.slow)])  # so is every test of it
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    runs = Runs(tmp_path_factory.mktemp("faults"))
    runs.add("whole")
    for name, faults in KILLS.items():
        for index, fault_of_job in enumerate(faults):
            runs.add(name, *([RESUME] if index else []), fault=fault_of_job)
            if fault_of_job == {"kill_in_file": "checkpoint-6/optimizer.pt"}:
                runs.add("by_path", f"--resume_from_checkpoint={runs.folder / name / 'checkpoint-6'}", out=name)
        runs.add(name, RESUME)
    runs.add("nan", fault={"nan_in_step": 5})
    runs.add("nan", RESUME, "--logging_steps=100", fault={"nan_in_step": 6})  # seen in the weights, before a save
    runs.add("nan", RESUME)
    disk = str(runs.folder / "full")
    runs.add("full", disk=[disk, "560k"])  # full at the weights of the second checkpoint
    runs.add("full", RESUME, disk=[disk, "800k"])  # full at its optimizer
    runs.add("full", RESUME, disk=[disk, "8m"])
    runs.add("full_at_the_end", "--save_strategy=no", disk=[str(runs.folder / "full_at_the_end"), "100k"])
    short = "--max_steps=4"
    runs.add("inodes", short, disk=[str(runs.folder / "inodes"), "8m,nr_inodes=35"])
    runs.add("sealed", short, disk=[str(runs.folder / "sealed"), "8m,ro"])  # from the beginning
    runs.add("sealed_later", short, disk=[str(runs.folder / "sealed_later"), "8m"], fault={"read_only_in_step": 4})
    runs.add("removed", short, fault={"remove_folder_in_step": 4})
    runs.add("removed_in_a_save", short, fault={"remove_folder_in_save": 4})
    runs.add("again", "--max_steps=2")
    runs.add(
        "again",
        "--max_steps=2",
        "--seed=1",
        "--overwrite_output_dir",
        fault={"kill_in_file": "again/model.safetensors"},
    )
    try:
        runs.start()
        yield runs
    finally:
        for name in ("full", "full_at_the_end", "inodes", "sealed", "sealed_later"):
            if os.path.ismount(runs.folder / name):
                subprocess.run(["umount", "-l", runs.folder / name], check=True)


def assert_same_end(first: Path, second: Path) -> None:
    """Weights, optimizer, scheduler, random state, logs and scores of two finished runs are identical."""
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        ends = [torch.load(out / "checkpoint-12" / name, weights_only=False) for out in (first, second)]
        for one, other in zip(*map(leaves, ends), strict=True):
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, name
    scores = [json.loads((out / "metrics.json").read_text()) for out in (first, second)]
    assert [*map(without_times, scores[0].values())] == [*map(without_times, scores[1].values())]
    assert set(scores[0]) == set(scores[1]) == {"before", "validation", "test", "train"}
    states = [json.loads((out / "checkpoint-12" / "trainer_state.json").read_text()) for out in (first, second)]
    histories = [[without_times(entry) for entry in state["log_history"]] for state in states]
    assert [entry for entry in histories[0] if "loss_image" in entry]
    assert histories[0] == histories[1]


def leaves(tree: Any) -> list[Any]:
    if isinstance(tree, dict):
        return [leaf for key in tree for leaf in (key, *leaves(tree[key]))]
    if isinstance(tree, (list, tuple)):
        return [leaf for entry in tree for leaf in leaves(entry)]
    return [torch.as_tensor(tree)] if hasattr(tree, "shape") else [tree]


def without_times(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if "runtime" not in key and "per_second" not in key}


# ---- killed ----


def test_dropout_is_on(runs):
    config = CrossModalConfig.from_pretrained(runs.folder / "whole")
    assert config.fusion_dropout > 0 and config.encoders["text"].hidden_dropout_prob > 0
    assert runs.codes("whole") == [0], runs.output("whole")


@pytest.mark.parametrize("name", KILLS)
def test_killed_and_resumed_ends_as_the_uninterrupted_run(runs, name):
    assert runs.codes(name) == [*(-9 for _ in KILLS[name]), 0], runs.output(name)
    assert_same_end(runs.folder / "whole", runs.folder / name)
    checkpoints = sorted(path.name for path in (runs.folder / name).glob("checkpoint-*"))
    assert checkpoints == ["checkpoint-10", "checkpoint-12"]


def test_killed_once_and_resumed_ends_as_the_uninterrupted_run(tmp_path):
    """The same for the fast tier: dead in a step, then in the save of a checkpoint."""
    runs = Runs(tmp_path)
    runs.add("whole")
    runs.add("killed", fault={"kill_in_step": 8})
    runs.add("killed", RESUME, fault={"kill_in_file": "checkpoint-10/optimizer.pt"})
    runs.add("killed", RESUME)
    runs.start()
    assert runs.codes("whole") == [0] and runs.codes("killed") == [-9, -9, 0], runs.output("killed")
    assert_same_end(tmp_path / "whole", tmp_path / "killed")


def test_half_written_checkpoints_are_named_and_set_aside(runs):
    out = runs.folder / "killed_in_a_save"
    assert "training starts from the beginning" in runs.output("killed_in_a_save", 1)
    said = runs.output("killed_in_a_save", 3)
    assert f"{out}/checkpoint-6 is skipped: trainer_state.json" in said
    assert f"resumes from {out}/checkpoint-4" in said
    assert "checkpoint-10 is skipped: trainer_state.json is incomplete" in runs.output("killed_in_a_save", 8)
    aside = sorted(path.name for path in out.glob("_incomplete-*"))
    assert aside == [f"_incomplete-checkpoint-{step}" for step in (10, 4, 6, 8)]


def test_a_half_written_checkpoint_by_its_path(runs):
    said = runs.output("by_path")
    assert runs.codes("by_path") == [2] and "Traceback" not in said
    assert "Cannot resume from the checkpoint" in said and "trainer_state.json" in said


def test_a_finished_model_outlives_the_death_of_the_next_run(runs):
    assert runs.codes("again") == [0, -9]
    state = json.loads((runs.folder / "again" / "checkpoint-2" / "trainer_state.json").read_text())
    assert state["global_step"] == 2  # the second run's checkpoint; the model is still the first run's
    model = CrossModalForSequenceClassification.from_pretrained(runs.folder / "again")
    saved = CrossModalForSequenceClassification.from_pretrained(runs.folder / "again" / "checkpoint-2")
    assert not torch.equal(model.state_dict()["classifier.weight"], saved.state_dict()["classifier.weight"])


# ---- full disks and NaN ----


def test_a_full_disk_keeps_the_last_checkpoint(runs):
    if runs.codes("full")[0] is None:
        pytest.skip("cannot mount a small file system here")
    assert runs.codes("full") == [2, 2, 0]
    for index in range(2):
        said = runs.output("full", index)
        message = said[said.index("hf-dgl train: ") :]
        assert "Traceback" not in said and message.count("\n") == 1
        assert "MB left" in message and "save_total_limit" in message
        assert f"continue from {runs.folder}/full/checkpoint-2" in message
    assert_same_end(runs.folder / "whole", runs.folder / "full")


def test_a_full_disk_at_the_end(runs):
    if runs.codes("full_at_the_end")[0] is None:
        pytest.skip("cannot mount a small file system here")
    said = runs.output("full_at_the_end")
    assert runs.codes("full_at_the_end") == [2] and "Traceback" not in said, said
    assert "MB left" in said and "no complete checkpoint yet" in said
    assert not (runs.folder / "full_at_the_end" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "words", "then"),
    [
        ("inodes", "but inodes for few more files:", "checkpoint-2, which is complete"),
        ("sealed", "cannot be written (Read-only file system)", "Choose another: `--output_dir FOLDER`"),
        ("sealed_later", "whose disk is mounted read-only", "checkpoint-2, which is complete"),
        ("removed_in_a_save", "a folder that is not there any more", "there is no complete checkpoint yet"),
    ],
)
def test_what_cannot_be_written_is_told_in_one_sentence(runs, name, words, then):
    if runs.codes(name)[0] is None:
        pytest.skip("cannot mount a small file system here")
    said = runs.output(name)
    assert runs.codes(name) == [2] and "Traceback" not in said, said
    message = said[said.index("hf-dgl train: ") :]
    assert words in message and then in message and message.count("\n") == 1
    if name == "sealed":
        assert "'loss'" not in said  # it is told before hours of training
    if "checkpoint-2" in then:
        assert fault(runs.folder / name / "checkpoint-2") is None


def test_a_folder_that_is_removed_is_made_again(runs):
    assert runs.codes("removed") == [0], runs.output("removed")
    CrossModalForSequenceClassification.from_pretrained(runs.folder / "removed")
    assert (runs.folder / "removed" / "metrics.json").is_file()


def test_nan_keeps_the_last_checkpoint(runs):
    assert runs.codes("nan") == [2, 2, 0]
    for index, what in enumerate(["The loss (loss_multimodal) is nan at step 5", "Weights are not finite at step 6"]):
        said = runs.output("nan", index)
        message = said[said.index("hf-dgl train: ") :]
        assert "Traceback" not in said and message.count("\n") == 1
        assert what in message and "learning_rate" in message
        assert re.search(r"last finite loss: 6\.\d+ at step 4\)", message)
        assert f"the newest complete checkpoint there is {runs.folder}/nan/checkpoint-4" in message
    assert_same_end(runs.folder / "whole", runs.folder / "nan")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_libraries_say_on_a_full_disk(tmp_path, error):
    with (
        pytest.raises(OSError, match="MB left.*there is no complete checkpoint yet"),
        explaining_a_full_disk(tmp_path),
    ):
        raise error


def test_other_errors_stay_as_they_are(tmp_path):
    for error in (PermissionError(errno.EACCES, "denied"), RuntimeError("shapes differ")):
        with pytest.raises(type(error), match=str(error.args[-1])), explaining_a_full_disk(tmp_path):
            raise error


# ---- which checkpoint ----


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    make(folder, save_strategy="steps", save_steps=2, max_steps=2).train()
    return folder / "checkpoint-2"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "rng_state.pth", "trainer_state.json"])
def test_a_file_cut_short(tmp_path, checkpoint, name):
    for step in (2, 4):
        shutil.copytree(checkpoint, tmp_path / f"checkpoint-{step}")
    assert newest_complete(tmp_path) == str(tmp_path / "checkpoint-4")
    cut(tmp_path / "checkpoint-4" / name)
    with pytest.raises(ValueError, match=rf"Cannot resume .*checkpoint-4': {name} is incomplete.*newest .*-2"):
        make(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert to_resume(True, tmp_path) == str(tmp_path / "checkpoint-2")
    assert not (tmp_path / "checkpoint-4").exists()
    assert to_resume(True, tmp_path) == str(tmp_path / "checkpoint-2")


def test_no_checkpoint_to_resume_from(tmp_path, checkpoint):
    with pytest.raises(ValueError, match="no complete checkpoint in .* Leave out"):
        make(tmp_path).train(resume_from_checkpoint=True)
    shutil.copytree(checkpoint, tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="checkpoint-2: it holds no weights"):
        make(tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match="checkpoint-9': there is no such folder"):
        make(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-9"))


def test_a_missing_shard(tmp_path, checkpoint):
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint-2")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00001-of-00002.safetensors is missing" in str(fault(folder))


def test_rotation_does_not_keep_half_a_checkpoint_in_place_of_a_whole_one(tmp_path, checkpoint, monkeypatch):
    """Upstream's rotation goes by step numbers where file times mean nothing, and would keep checkpoint-9 only."""
    monkeypatch.setattr(os.path, "getmtime", lambda path: 0.0)
    shutil.copytree(checkpoint, tmp_path / "checkpoint-2")
    half = shutil.copytree(checkpoint, tmp_path / "checkpoint-9")
    (half / "trainer_state.json").unlink()
    trainer = make(tmp_path, save_strategy="steps", save_steps=1, save_total_limit=1, max_steps=3)
    trainer.train(resume_from_checkpoint=True)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    assert newest_complete(tmp_path) == str(tmp_path / "checkpoint-3")


def test_a_checkpoint_without_optimizer_state_is_told(tmp_path, monkeypatch):
    make(tmp_path, save_strategy="steps", save_steps=2, max_steps=2, save_only_model=True).train()
    warnings: list[str] = []
    monkeypatch.setattr("hf_dgl.training.checkpoints.logger.warning", warnings.append)
    assert to_resume(True, tmp_path) == str(tmp_path / "checkpoint-2")
    assert "no optimizer state, no learning rate schedule and no random state" in warnings[0]


# ---- a model's files, all at once ----


def test_a_failed_save_leaves_the_old_model(tmp_path):
    old, new = (tiny_model(num_fusion_layers=layers) for layers in (1, 2))
    old.save_pretrained(tmp_path)
    (tmp_path / "_saving").mkdir()  # of a run that was killed
    with pytest.raises(KeyboardInterrupt), replaced_at_once(tmp_path) as draft:
        new.save_pretrained(draft)
        raise KeyboardInterrupt
    same(old.state_dict(), CrossModalForSequenceClassification.from_pretrained(tmp_path).state_dict())
    assert not (tmp_path / "_saving").exists()


def test_files_of_the_old_model_do_not_stay(tmp_path):
    old, new = (tiny_model(num_fusion_layers=layers) for layers in (2, 1))
    old.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*"))) > 1
    with replaced_at_once(tmp_path) as draft:
        new.save_pretrained(draft)
    assert sorted(path.name for path in tmp_path.glob("model*.safetensors*")) == ["model.safetensors"]
    same(new.state_dict(), CrossModalForSequenceClassification.from_pretrained(tmp_path).state_dict())


def test_a_half_replaced_model_does_not_load(tmp_path, monkeypatch):
    tiny_model(num_fusion_layers=1).save_pretrained(tmp_path)

    def replace(source: Any, target: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch, replaced_at_once(tmp_path) as draft:
        tiny_model(num_fusion_layers=2).save_pretrained(draft)
        patch.setattr(os, "replace", replace)
    with pytest.raises((OSError, ValueError)):
        CrossModalForSequenceClassification.from_pretrained(tmp_path)


def test_a_checkpoint_written_again_is_incomplete_until_its_end(tmp_path, checkpoint):
    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint-2")
    with replaced_at_once(folder) as draft:
        tiny_model().save_pretrained(draft)
    assert "trainer_state.json" in str(fault(folder))


# ---- resumed: every model x method ----


class InterleavedWithDropout(Interleaved):
    def build(self) -> None:
        super().build()
        self.bridges = nn.ModuleList(nn.Sequential(bridge, nn.Dropout(0.3)) for bridge in self.bridges)


def trainer_of(name: str, folder: Path, **kwargs: Any) -> DGLTrainer:
    kwargs = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5, **kwargs}
    if name == "interleaved":
        model = make_toy(InterleavedWithDropout)
        batch = toy_batch(model, rows=24)
        rows = [{key: value[row] for key, value in batch.items()} for row in range(24)]
        callbacks = kwargs.pop("callbacks", None)
        args = arguments(folder, **kwargs)
        return DGLTrainer(model, args, default_data_collator, rows, modalities=model.declared(), callbacks=callbacks)
    encoders = {name: FAMILIES[family].config() for name, family in [("image", "vit"), ("text", "bert")]}
    encoders["image"].hidden_dropout_prob = 0.1
    torch.manual_seed(0)
    config = CrossModalConfig(
        encoders=encoders,
        fusion_type=name,
        fusion_dropout=0.1,
        num_labels=NUM_LABELS,
        problem_type="single_label_classification",
    )
    evaluated = {"eval_dataset": Rows(8, seed=1), "eval_strategy": "steps", "eval_steps": 2}
    return make(folder, CrossModalForSequenceClassification(config), **evaluated, **kwargs)


@pytest.mark.parametrize(("name", "method"), each_once(["cross_attention", "concat", "interleaved"], list(METHODS)))
def test_resumed_is_uninterrupted(tmp_path, name, method):
    if METHODS[method].adaptive and name == "interleaved":
        pytest.skip("adaptive_dgl needs a config with a problem_type, and this toy has none")
    whole = trainer_of(name, tmp_path / "whole", method=method)
    whole.train()
    resumed = trainer_of(name, tmp_path / "resumed", method=method)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    same(weights(whole), weights(resumed))


def test_with_accumulation_and_epochs(tmp_path):
    kwargs = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "save_strategy": "epoch"}
    whole = trainer_of("cross_attention", tmp_path / "whole", **kwargs)
    whole.train()
    resumed = trainer_of("cross_attention", tmp_path / "resumed", **kwargs)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    same(weights(whole), weights(resumed))


def test_the_random_state_matters(tmp_path):
    """The tests above would see a wrong random state: without it the resumed run ends elsewhere."""
    whole = trainer_of("cross_attention", tmp_path / "whole")
    whole.train()
    resumed = trainer_of("cross_attention", tmp_path / "parts")
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "parts" / "checkpoint-2")
    state = torch.load(tmp_path / "parts" / "checkpoint-2" / "rng_state.pth", weights_only=False)
    torch.save(
        {**state, "cpu": torch.Generator().manual_seed(1).get_state()}, tmp_path / "parts/checkpoint-2/rng_state.pth"
    )
    write_manifest(tmp_path / "parts" / "checkpoint-2", settings_of(resumed))
    resumed.train(resume_from_checkpoint=True)
    with pytest.raises(AssertionError):
        same(weights(whole), weights(resumed))


def test_a_finished_run_is_not_trained_further(tmp_path):
    """Upstream trains one more step where `max_steps` ends within an epoch."""
    whole = trainer_of("cross_attention", tmp_path, save_steps=5)
    whole.train()
    again = trainer_of("cross_attention", tmp_path, save_steps=5)
    assert again.train(resume_from_checkpoint=True).global_step == 5
    same(weights(whole), weights(again))
