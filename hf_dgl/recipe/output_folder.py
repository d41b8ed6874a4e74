"""What is looked at before a run: can its folder be written, whose model would be lost, are the loggers there?"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers.integrations import get_available_reporting_integrations
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_dgl.hub.model_card import is_card_of_others
from hf_dgl.training.arguments import DGLTrainingArguments
from hf_dgl.training.checkpoints import newest_complete

fcntl: Any
try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

_PACKAGES = {"azure_ml": "azureml-mlflow", "comet_ml": "comet_ml"}
_ALWAYS_THERE = ("flyte",)  # upstream does not say whether it is installed
_FINISHED = ("model*.safetensors", "pytorch_model*.bin", "adapter_model.safetensors", "metrics.json")


def check_output_folder(training: DGLTrainingArguments) -> None:
    """Goes on only if the run may write into its `output_dir`, and costs nobody a model.

    Args:
        training: Its `output_dir`, `overwrite_output_dir` and `resume_from_checkpoint` are read.

    Raises:
        OSError: the folder cannot be made or written.
        ValueError: it holds a model of another run than the one that is resumed, checkpoints of a run that could go
            on, or a recipe or README that no run has written.

    Example:

        >>> check_output_folder(load_recipe("quickstart/image_text").training)
    """
    folder = Path(str(training.output_dir))
    check_writable(folder)
    if training.overwrite_output_dir or _goes_on_in(folder, training):
        return
    elsewhere = shlex.quote(str(_free(folder)))
    if any(True for pattern in _FINISHED for _ in folder.glob(pattern)):
        raise ValueError(
            f"{folder} already holds a model. Keep it, and write elsewhere: `--output_dir {elsewhere}`; or "
            "replace it: `--overwrite_output_dir`."
        )
    if not resumes(training) and (checkpoints := _checkpoints(folder)):
        raise ValueError(
            f"{folder} holds {checkpoints[-1].name} of a run that did not end. Go on with it: "
            f"`--resume_from_checkpoint true`; or write elsewhere: `--output_dir {elsewhere}`; or begin anew "
            "without it: `--overwrite_output_dir`."
        )
    if not resumes(training) and (own := _of_the_user(folder)):
        raise ValueError(
            f"{folder} holds a {own} that is not of a run, and that this one would write over. Write elsewhere: "
            f"`--output_dir {elsewhere}`; or replace it: `--overwrite_output_dir`."
        )


def _of_the_user(folder: Path) -> str | None:
    """A file that a run writes, in a folder where none has ended: a project's README, a recipe with its comments."""
    if (folder / "recipe.yaml").is_file():  # which a run writes together with `metrics.json`
        return "recipe.yaml"
    return "README.md" if is_card_of_others(folder / "README.md") else None


def _goes_on_in(folder: Path, training: DGLTrainingArguments) -> bool:
    """Whether the run goes on from a checkpoint in its own folder: what else is there is its own, too."""
    wanted = str(training.resume_from_checkpoint)
    if wanted.lower() == "true":  # without a complete one it begins anew
        return newest_complete(folder) is not None
    return resumes(training) and Path(wanted).resolve().parent == folder.resolve()


@contextmanager
def alone_in_its_folder(training: DGLTrainingArguments) -> Iterator[None]:
    """Inside, no other run on this machine trains into the same folder: they would mix their models.

    The lock ends with the process, however it ends.

    Raises:
        ValueError: another run is there.

    Example:

        >>> with alone_in_its_folder(recipe.training):
        ...     trainer.train()
    """
    lock = _opened(Path(str(training.output_dir))) if training.process_index == 0 else None
    if lock is None:
        yield
        return
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            elsewhere = shlex.quote(str(_free(Path(str(training.output_dir)))))
            raise ValueError(
                f"Another run is writing into {training.output_dir} just now. Wait for its end, or write elsewhere: "
                f"`--output_dir {elsewhere}`."
            ) from error
        except OSError:  # a network drive without locks
            pass
        check_output_folder(training)  # one may have ended there since this run began to read its data
        yield
    finally:
        if lock in _locks:
            _locks.remove(lock)
            with suppress(OSError):  # a worker that was just started may still have it open
                fcntl.flock(lock, fcntl.LOCK_UN)
            os.close(lock)


_locks: set[int] = set()
"""Folders that this process has opened to lock them."""


def _opened(folder: Path) -> int | None:
    """The folder itself, so that no file is left behind; None where that cannot be."""
    if fcntl is None:
        return None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY)
    except OSError:  # told by who has to write there
        return None
    _locks.add(lock)
    return lock


def _let_go() -> None:
    """In a worker process, which would hold the lock of a run that was killed until it ends itself."""
    while _locks:
        os.close(_locks.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def remove_old_checkpoints(training: DGLTrainingArguments) -> None:
    """With `overwrite_output_dir`: else `save_total_limit` would count them among those of the new run.

    The old model stays until the new one takes its place.
    """
    if training.overwrite_output_dir and not resumes(training) and training.process_index == 0:
        for checkpoint in _checkpoints(Path(str(training.output_dir))):
            shutil.rmtree(checkpoint)


def check_writable(folder: str | os.PathLike[str]) -> None:
    """Makes a file in it, for a moment; where it does not exist yet, in the nearest folder above that does.

    Nothing is left behind, and every process of a run may look at once.

    Raises:
        OSError: names the folder, and why it cannot be.

    Example:

        >>> check_writable("outputs/image_text")
    """
    wanted = Path(folder).absolute()
    nearest = next(path for path in (wanted, *wanted.parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        what = "is a file" if os.path.isfile(folder) else f"cannot be written ({error.strerror})"
        raise OSError(f"output_dir: {os.fspath(folder)!r} {what}. Choose another: `--output_dir FOLDER`.") from error


def check_loggers(training: DGLTrainingArguments) -> None:
    """Goes on only if what `report_to` names is installed.

    Raises:
        ValueError: names what is missing, and what to type.

    Example:

        >>> check_loggers(DGLTrainingArguments("out", report_to="tensorboard"))
    """
    available = get_available_reporting_integrations()
    for name in training.report_to or ():
        if name in INTEGRATION_TO_CALLBACK and name not in available and name not in _ALWAYS_THERE:
            raise ValueError(f"report_to: {name} is not installed. Type: pip install {_PACKAGES.get(name, name)}")


def resumes(training: DGLTrainingArguments) -> bool:
    """Whether the run goes on from a checkpoint."""
    return str(training.resume_from_checkpoint).lower() not in ("none", "false", "no")


def _checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    found = [path for path in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.name.rpartition("-")[2].isdigit()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def _free(folder: Path) -> Path:
    """`outputs/mine-2`, or the next number that nobody has."""
    number = 2
    while (other := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return other
