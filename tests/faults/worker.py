"""Real runs of the command line, each in a process of its own, some of which die or fail where they are told to.

`work("JOBS.json")` runs `{"words": [...], "fault": {...}, "log": path}`, one after the other.
A job may also say `"disk": [folder, size]`: a file system of that size is mounted there, or the one there is resized.
Every job is forked from a process that has the libraries loaded, which takes a fraction of a second. A job's output
goes to its log, and its exit code (-9: killed) is added to the job.
"""

from __future__ import annotations

import gc
import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers.modeling_utils
import transformers.trainer_utils
from transformers import TrainerState

import hf_dgl.recipe.finetune  # noqa: F401 (imported before forking)
from hf_dgl.cli import main
from hf_dgl.training.trainer import DGLTrainer


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_step(step: int) -> None:
    """Dies while step `step` (from 1) computes its loss."""
    original = DGLTrainer.compute_loss

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        if self.is_in_train and self.model.training and self.state.global_step == step - 1:
            die()
        return result

    DGLTrainer.compute_loss = compute_loss  # type: ignore[method-assign]


def kill_in_file(ending: str) -> None:
    """Dies when half of the file whose path ends so (without the folder `_saving`) is on the disk."""

    def write(path: Any, data: bytes) -> None:
        wanted = str(path).replace("_saving/", "").endswith(ending)
        with open(path, "wb") as file:
            file.write(data[: len(data) // 2] if wanted else data)
        if wanted:
            die()

    def save(thing: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        buffer = io.BytesIO()
        original_save(thing, buffer)
        write(path, buffer.getvalue())

    def save_file(tensors: Any, path: Any, metadata: Any = None) -> None:
        write(path, safetensors.torch.save(tensors, metadata))

    def save_to_json(self: Any, path: str) -> None:
        original_json(self, path)
        write(path, Path(path).read_bytes())

    original_save, original_json = torch.save, TrainerState.save_to_json
    torch.save = save  # type: ignore[assignment]
    transformers.modeling_utils.safe_save_file = save_file
    TrainerState.save_to_json = save_to_json  # type: ignore[method-assign]


def kill_in_rotation(name: str) -> None:
    """Dies when half of the files of an old checkpoint are deleted."""
    original = shutil.rmtree

    def rmtree(path: Any, *args: Any, **kwargs: Any) -> None:
        if Path(path).name == name:
            files = sorted(entry for entry in Path(path).iterdir() if entry.is_file())
            for file in files[: len(files) // 2]:
                file.unlink()
            die()
        original(path, *args, **kwargs)

    shutil.rmtree = rmtree  # type: ignore[assignment]


def kill_before_replacing(ending: str) -> None:
    """Dies when some files of a model are in their place and this one is not."""
    original = os.replace

    def replace(source: Any, target: Any) -> None:
        if str(target).endswith(ending):
            die()
        original(source, target)

    os.replace = replace  # type: ignore[assignment]


def nan_in_step(step: int) -> None:
    """From this step on, the loss is NaN."""
    original = DGLTrainer.compute_loss

    def compute_loss(self: Any, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any) -> Any:
        if self.model.training and self.state.global_step >= step - 1:
            name = next(iter(inputs["image"]))
            inputs["image"][name] = torch.full_like(inputs["image"][name], torch.nan)
        return original(self, model, inputs, return_outputs, **kwargs)

    DGLTrainer.compute_loss = compute_loss  # type: ignore[method-assign]


def in_step(step: int, action: Callable[[str], Any]) -> None:
    """Does something to the output folder when step `step` begins."""
    original = DGLTrainer.compute_loss

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.is_in_train and self.model.training and self.state.global_step == step - 1:
            action(str(self.args.output_dir))
        return original(self, *args, **kwargs)

    DGLTrainer.compute_loss = compute_loss  # type: ignore[method-assign]


def remove_folder_in_step(step: int) -> None:
    """The output folder is deleted; who owns a mount point leaves it empty."""
    in_step(step, lambda folder: shutil.rmtree(folder, ignore_errors=True))  # a step may compute several losses


def read_only_in_step(step: int) -> None:
    """The disk of the output folder is mounted read-only."""
    in_step(step, lambda folder: subprocess.run(["mount", "-o", "remount,ro", folder], check=True))


def remove_folder_in_save(step: int) -> None:
    """The output folder is deleted when the weights of a checkpoint are written, and the optimizer is not."""
    original = DGLTrainer._save_optimizer_and_scheduler

    def save(self: Any, output_dir: str) -> None:
        if self.state.global_step == step:
            shutil.rmtree(self.args.output_dir)
        original(self, output_dir)

    DGLTrainer._save_optimizer_and_scheduler = save  # type: ignore[method-assign]


FAULTS = {
    fault.__name__: fault
    for fault in (
        kill_in_step,
        kill_in_file,
        kill_in_rotation,
        kill_before_replacing,
        nan_in_step,
        remove_folder_in_step,
        remove_folder_in_save,
        read_only_in_step,
    )
}


def mount(folder: str, size: str) -> None:
    """A file system in memory, or another size for the one that is there."""
    options = f"remount,size={size}" if os.path.ismount(folder) else f"size={size}"
    os.makedirs(folder, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)


def run(job: dict[str, Any]) -> int | None:
    """The exit code of one job; None if its file system cannot be mounted here."""
    try:
        if "disk" in job:
            mount(*job["disk"])
    except (subprocess.CalledProcessError, OSError):
        return None
    child = os.fork()
    if child == 0:
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        multiprocessing.set_start_method(
            "fork", force=True
        )  # as in a command's process: loaders die with their parent
        code = 70
        try:
            for name, value in job.get("fault", {}).items():
                FAULTS[name](value)
            code = main(job["words"])
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def work(path_of_jobs: str) -> None:
    """Runs all jobs of a file, and writes their exit codes into it."""
    path = Path(path_of_jobs)
    jobs = json.loads(path.read_text())
    gc.freeze()  # what is imported needs no collection in every child
    for job in jobs:
        job["code"] = run(job)
    path.write_text(json.dumps(jobs))
