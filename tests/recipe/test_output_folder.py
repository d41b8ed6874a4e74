"""Whose model would be lost: what `check_output_folder` stops, and what it lets through."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import TrainerState

from hf_dgl.recipe.output_folder import (
    alone_in_its_folder,
    check_loggers,
    check_output_folder,
    check_writable,
    remove_old_checkpoints,
)
from hf_dgl.training.arguments import DGLTrainingArguments

MODEL, CHECKPOINT = "already holds a model", "of a run that did not end"


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        ([], {}, None),
        (["notes.txt", "broken_rows.jsonl", "config.json"], {}, None),
        (["model.safetensors"], {}, MODEL),
        (["model-00001-of-00002.safetensors"], {}, MODEL),
        (["adapter_model.safetensors"], {}, MODEL),
        (["metrics.json"], {}, MODEL),
        (["checkpoint-2/x", "checkpoint-10/x"], {}, f"holds checkpoint-10 {CHECKPOINT}"),
        (["checkpoint-best/x"], {}, None),
        (["recipe.yaml"], {}, "holds a recipe.yaml that is not of a run"),
        (["README.md"], {}, "holds a README.md that is not of a run"),
        (["recipe.yaml", "README.md"], {"overwrite_output_dir": True}, None),
        (["model.safetensors", "checkpoint-2/x"], {"overwrite_output_dir": True}, None),
        (["model.safetensors"], {"resume_from_checkpoint": "false"}, MODEL),
        (["model.safetensors"], {"resume_from_checkpoint": "true"}, MODEL),  # it would begin anew
        (["model.safetensors", "checkpoint-2/x"], {"resume_from_checkpoint": "true"}, MODEL),  # not complete
        (["model.safetensors"], {"resume_from_checkpoint": "other/checkpoint-2"}, MODEL),
        (["checkpoint-2/x"], {"resume_from_checkpoint": "true"}, None),
    ],
    ids=str,
)
def test_what_stops_a_run(tmp_path: Path, files: list[str], settings: dict, message: str | None) -> None:
    out = tmp_path / "out"
    for name in files:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("# my own")
    (tmp_path / "out-2").mkdir()
    training = DGLTrainingArguments(str(out), use_cpu=True, **settings)
    if message is None:
        check_output_folder(training)
        assert out.is_dir() == bool(files)  # a run that fails later leaves no empty folder
        return
    with pytest.raises(ValueError, match=message) as error:
        check_output_folder(training)
    assert f"`--output_dir {out}-3`" in str(error.value) and "`--overwrite_output_dir`" in str(error.value)


def test_a_run_goes_on_beside_its_own_model(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    for path in (tmp_path / "model.safetensors", checkpoint / "model.safetensors"):
        save_file({"x": torch.ones(1)}, path)
    TrainerState(epoch=1.0, global_step=2, max_steps=4).save_to_json(str(checkpoint / "trainer_state.json"))
    for wanted in ("true", str(checkpoint), f"{checkpoint}/"):
        check_output_folder(DGLTrainingArguments(str(tmp_path), use_cpu=True, resume_from_checkpoint=wanted))


def test_two_runs_do_not_write_into_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "my out"
    training = DGLTrainingArguments(str(out), use_cpu=True)
    with alone_in_its_folder(training):
        with pytest.raises(ValueError, match="Another run is writing into .*`--output_dir '.*/my out-2'`"):
            with alone_in_its_folder(training):
                pass
        worker = os.fork()
        if not worker:
            time.sleep(60)
            os._exit(0)
    try:
        with alone_in_its_folder(training):  # workers that outlive a run keep nobody out
            assert list(out.iterdir()) == []
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
    (out / "model.safetensors").touch()
    with pytest.raises(ValueError, match=MODEL), alone_in_its_folder(training):
        pass


def test_all_processes_look_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as processes:
        for look in [processes.submit(check_writable, tmp_path / "not" / "yet") for _ in range(400)]:
            look.result()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("folder", "what"), [("file", "is a file"), ("file/out", "cannot be"), ("dangling", "cannot be")]
)
def test_what_cannot_be_a_folder_is_told(tmp_path: Path, folder: str, what: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    with pytest.raises(OSError, match=what):
        check_writable(tmp_path / folder)


def test_overwriting_removes_old_checkpoints_only(tmp_path: Path) -> None:
    for name in ("checkpoint-2/x", "model.safetensors", "checkpoint-notes/x"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    remove_old_checkpoints(DGLTrainingArguments(str(tmp_path), use_cpu=True, overwrite_output_dir=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-notes", "model.safetensors"]
    (tmp_path / "checkpoint-4").mkdir()
    settings = {"overwrite_output_dir": True, "resume_from_checkpoint": "true"}
    remove_old_checkpoints(DGLTrainingArguments(str(tmp_path), use_cpu=True, **settings))
    assert (tmp_path / "checkpoint-4").is_dir()


def test_loggers_that_are_not_installed_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_dgl.recipe.output_folder.get_available_reporting_integrations", lambda: ["wandb"])
    check_loggers(DGLTrainingArguments(str(tmp_path), use_cpu=True, report_to=["wandb"]))
    with pytest.raises(ValueError, match="report_to: tensorboard is not installed. Type: pip install tensorboard"):
        check_loggers(DGLTrainingArguments(str(tmp_path), use_cpu=True, report_to=["wandb", "tensorboard"]))
