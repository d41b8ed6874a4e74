"""Checkpoints and crashes: which checkpoint is complete, and a model's files that are replaced all at once.

The Trainer writes the files of a checkpoint one after the other, `trainer_state.json` last. A process that is killed,
or a disk that is full, leaves a folder that looks like the newest checkpoint and is none. So `DGLTrainer` resumes from
the newest *complete* one, and moves half-written ones out of the way (`save_total_limit` would count them as good).
"""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

logger = logging.get_logger(__name__)

# As the Trainer, PEFT, FSDP and DeepSpeed name them.
_WEIGHTS = ("*.safetensors", "pytorch_model*", "adapter_model*", "*/adapter_model*", "global_step*")
_OPTIMIZERS = ("optimizer*", "global_step*")
_CONFIGS = ("config.json", "adapter_config.json")

_DRAFT = "_saving"
"""Folder for files on their way; `push_to_hub` leaves out names that begin with `_`."""


def fault(folder: str | os.PathLike[str]) -> str | None:
    """What keeps training from being resumed from a checkpoint.

    Only outlines are read (file sizes, headers, the ends of archives): it takes no time, finds every file that was cut
    short, and does not find a flipped bit.

    Args:
        folder: `.../checkpoint-500`, of the Trainer on any number of processes, PEFT, FSDP or DeepSpeed.

    Returns:
        A few words, or None if the checkpoint is complete.

    Example:

        >>> fault("outputs/image_text/checkpoint-500")
        'trainer_state.json, which is written last, is missing'
    """
    folder = Path(folder)
    if not folder.is_dir():
        return "there is no such folder"
    if not (folder / TRAINER_STATE_NAME).is_file():
        return f"{TRAINER_STATE_NAME}, which is written last, is missing"
    if not _has(folder, _WEIGHTS):
        return "it holds no weights"
    for path in sorted(folder.rglob("*")):
        try:
            _read_outline(path)
        except (ValueError, OSError, zipfile.BadZipFile, SafetensorError) as error:
            return f"{path.relative_to(folder)} is incomplete or damaged ({error})"
    return None


def _read_outline(path: Path) -> None:
    """Raises if a file of a known format was cut short."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt"):
            pass
    elif path.suffix in (".pt", ".pth"):  # torch saves zip archives, whose table of contents comes last
        zipfile.ZipFile(path).close()
    elif path.suffix == ".json":
        content = json.loads(path.read_text(encoding="utf-8"))
        if path.name.endswith(".index.json"):
            lacking = sorted({name for name in content["weight_map"].values() if not (path.parent / name).is_file()})
            if lacking:
                raise ValueError(f"{lacking[0]} is missing")


def newest_complete(output_dir: str | os.PathLike[str]) -> str | None:
    """The last complete checkpoint in a Trainer's `output_dir`; None if there is none.

    Example:

        >>> newest_complete("outputs/image_text")
        'outputs/image_text/checkpoint-400'
    """
    return next((str(folder) for folder in _checkpoints(output_dir) if fault(folder) is None), None)


def to_resume(wanted: str | os.PathLike[str] | Literal[True], output_dir: str | os.PathLike[str]) -> str:
    """The checkpoint that training continues from, after a look at whether that is possible.

    Half-written checkpoints that are newer are renamed to `_incomplete-checkpoint-...`, with a warning.

    Args:
        wanted: A folder, or True for the newest complete one in `output_dir`.
        output_dir: Of the Trainer.

    Raises:
        ValueError: if the folder, or everything in `output_dir`, is no complete checkpoint; says why.

    Example:

        >>> trainer.train(resume_from_checkpoint=to_resume(True, trainer.args.output_dir))  # as DGLTrainer does
    """
    if wanted is True:
        found = newest_complete(output_dir)
        if found is None:
            faults = "".join(f" {folder.name}: {fault(folder)}." for folder in _checkpoints(output_dir))
            raise ValueError(
                f"There is no complete checkpoint in {output_dir} to resume from.{faults} Leave out "
                "`resume_from_checkpoint` to start from the beginning."
            )
    else:
        found = os.fspath(wanted)
        problem = fault(found)
        if problem is not None:
            newest = newest_complete(output_dir)
            instead = f"The newest complete one in {output_dir} is {newest}." if newest else "Did the run save any?"
            raise ValueError(f"Cannot resume from the checkpoint {found!r}: {problem}. {instead}")
    if not _has(Path(found), _OPTIMIZERS):
        logger.warning(
            f"{found} holds no optimizer state (`save_only_model`?): training continues from its weights and step, "
            "but not as the uninterrupted run would."
        )
    for folder in _checkpoints(output_dir):
        if _step(folder) <= _step(Path(found)):
            break
        problem = fault(folder)
        if problem is not None:
            aside = _set_aside(folder)
            logger.warning(
                f"{folder} is skipped: {problem}. Training resumes from {found}; what there is of the other is now in "
                f"{aside} and can be deleted."
            )
    return found


def _set_aside(folder: Path) -> Path:
    aside = folder.with_name(f"_incomplete-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    return folder.rename(aside)


def _checkpoints(output_dir: str | os.PathLike[str]) -> list[Path]:
    """The checkpoint folders in `output_dir`, complete or not, newest (in steps) first."""
    found = [
        path for path in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir() and _step(path) >= 0
    ]
    return sorted(found, key=_step, reverse=True)


def _step(folder: Path) -> int:
    """500 for `checkpoint-500`; -1 for other names."""
    match = re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", folder.name)
    return int(match[1]) if match else -1


def _has(folder: Path, patterns: tuple[str, ...]) -> bool:
    return any(True for pattern in patterns for _ in folder.glob(pattern))


@contextmanager
def under_its_own_names(model: Any) -> Iterator[None]:
    """Inside, `model.save_pretrained` writes the weights under the names that they have in the model.

    Upstream writes those of some architectures (LLaVA, Mllama, ...) under the names of older releases, and `Trainer`
    resumes without translating them back: it would go on from weights that were never trained.
    """
    if not isinstance(model, PreTrainedModel):
        yield
        return
    model.save_pretrained = functools.partial(model.save_pretrained, save_original_format=False)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del model.save_pretrained


@contextmanager
def replaced_at_once(folder: str | os.PathLike[str]) -> Iterator[str]:
    """Gives a folder to save a model into, whose files replace those of `folder` when the block ends.

    A crash inside the block leaves `folder` as it was. While the files are moved (no data is copied) there is no
    `config.json`, so what a crash leaves then does not load, rather than one model's weights under another's config.

    Example:

        >>> with replaced_at_once("outputs/image_text") as draft:
        ...     model.save_pretrained(draft)
    """
    target, draft = Path(folder), Path(folder) / _DRAFT
    shutil.rmtree(draft, ignore_errors=True)  # of a run that was killed
    draft.mkdir(parents=True)
    try:
        if (target / "README.md").is_file():  # PEFT adds to the card that it finds
            shutil.copy2(target / "README.md", draft)
        yield str(draft)
        files = [path.relative_to(draft) for path in draft.rglob("*") if path.is_file()]
        old, new = ({path.name for path in place.glob("model*.safetensors*")} for place in (target, draft))
        outdated = sorted(old - new) if new else []  # the shards of another model; not what adapters build on
        if _step(target) >= 0:  # a checkpoint that is written again is not complete before the end
            outdated.append(TRAINER_STATE_NAME)
        for name in [*(name for name in _CONFIGS if Path(name) in files), *outdated]:
            (target / name).unlink(missing_ok=True)
        for path in sorted(files, key=lambda path: str(path) in _CONFIGS):  # False < True: configs last
            (target / path).parent.mkdir(exist_ok=True, parents=True)
            os.replace(draft / path, target / path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def explaining_a_full_disk(output_dir: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what safetensors, torch and Python raise on a full disk into one error that says what to do.

    Raises:
        OSError: with the free space, and the last complete checkpoint.

    Example:

        >>> with explaining_a_full_disk("outputs/image_text"):
        ...     trainer.save_model()
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_about_writing(error):
            raise
        newest = newest_complete(output_dir)
        then = f"continue from {newest}, which is complete, with `resume_from_checkpoint: true`"
        free = shutil.disk_usage(output_dir).free / 2**20
        raise OSError(
            f"Could not write into {output_dir}, whose disk has {free:.1f} MB left ({error}). Make room there, or "
            "choose another `output_dir` or a smaller `save_total_limit`; then "
            f"{then if newest else 'start again (there is no complete checkpoint yet)'}."
        ) from error


def _is_about_writing(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    # torch's writer says "unexpected pos 576 vs 534" or "iostream error" when the disk is full, and nothing else.
    return any(sign in str(error) for sign in ("No space left on device", "inline_container", "iostream error"))
