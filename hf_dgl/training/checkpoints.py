"""Checkpoints and crashes: which checkpoint is whole, which are deleted, and a model's files, replaced all at once.

The Trainer writes the files of a checkpoint one after the other, and we a manifest after the last. A process that is
killed, or a disk that is full, leaves a folder that looks like the newest checkpoint and is none. So `DGLTrainer`
resumes from the newest *complete* one, and moves half-written ones out of the way (`save_total_limit` would count them
as good).
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open
from transformers import PreTrainedModel, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from .manifest import MANIFEST, damage, write_manifest
from .sums import SUMS

logger = logging.get_logger(__name__)

# As the Trainer, PEFT, FSDP and DeepSpeed name them.
_WEIGHTS = ("*.safetensors", "pytorch_model*", "adapter_model*", "*/adapter_model*", "global_step*")
_STATE_OF_RUN = {  # the pattern of a file that every checkpoint has which was not saved with `save_only_model`
    "optimizer.pt": ("optimizer*", "global_step*"),
    "scheduler.pt": ("scheduler.pt", "global_step*"),
    "rng_state.pth": ("rng_state*.pth",),
}
_CONFIGS = ("config.json", "adapter_config.json")

DRAFT = "_saving"
"""Folder for files on their way; `push_to_hub` leaves out names that begin with `_`."""

_AMENDED = "_amended"
"""Folder in a checkpoint for files that are complete and on their way to replace its own."""


def fault(folder: str | os.PathLike[str], read_all: bool = True) -> str | None:
    """What keeps training from being resumed from a checkpoint.

    Args:
        folder: `.../checkpoint-500`, of the Trainer on any number of processes, PEFT, FSDP or DeepSpeed.
        read_all: Every byte is compared with the checkpoint's manifest. False: outlines only (file sizes, headers, the
            ends of archives), which takes no time, finds every file that was cut short, and no flipped bit.

    Returns:
        A few words, or None if the checkpoint is complete.

    Example:

        >>> fault("outputs/image_text/checkpoint-500")
        'trainer_state.json is missing'
    """
    folder = Path(folder)
    if not folder.is_dir():
        return "there is no such folder"
    try:
        finish_amending(folder)
    except OSError as error:
        return f"what was to replace its files cannot be moved ({error})"
    if not (folder / TRAINER_STATE_NAME).is_file():
        return f"{TRAINER_STATE_NAME} is missing"
    if not _has(folder, _WEIGHTS):
        return "it holds no weights"
    for path in sorted(folder.rglob("*")):
        if path.relative_to(folder).parts[0] == DRAFT:  # of a run that was killed
            continue
        try:
            _read_outline(path)
        except Exception as error:  # of json, zipfile, safetensors: whatever damaged bytes lead to
            return f"{path.relative_to(folder)} is incomplete or damaged ({error})"
    missing = [name for name, patterns in _STATE_OF_RUN.items() if not _has(folder, patterns)]
    if 0 < len(missing) < len(_STATE_OF_RUN):
        return f"{missing[0]} is missing"
    if not (folder / MANIFEST).is_file():
        saved: Any = TrainerState.load_from_json(str(folder / TRAINER_STATE_NAME)).stateful_callbacks
        return f"{MANIFEST}, which is written last, is missing" if SUMS in saved else None
    return damage(folder, read_all)


def _read_outline(path: Path) -> None:
    """Raises if a file of a known format was cut short."""
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt"):
            pass
    elif path.suffix in (".pt", ".pth"):  # torch saves zip archives, whose table of contents comes last
        zipfile.ZipFile(path).close()
    elif path.suffix == ".json":
        content = json.loads(path.read_text(encoding="utf-8"))
        if path.name == TRAINER_STATE_NAME:
            _read_state(content)
        if path.name.endswith(".index.json"):
            lacking = sorted({name for name in content["weight_map"].values() if not (path.parent / name).is_file()})
            if lacking:
                raise ValueError(f"{lacking[0]} is missing")


def _read_state(content: Any) -> None:
    """Raises if this is not what `TrainerState` writes."""
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__} in place of the state of a run")
    lacking = [key for key in ("global_step", "max_steps", "epoch", "log_history") if content.get(key) is None]
    if lacking:
        raise ValueError(f"it lacks {lacking[0]}")
    steps = content["global_step"], content["max_steps"]
    if not all(isinstance(number, int) and number >= 0 for number in steps):
        raise ValueError(f"it says that {steps[0]!r} of {steps[1]!r} steps are done")
    if not all(isinstance(entry, dict) and "step" in entry for entry in content["log_history"]):
        raise ValueError("its log_history is no list of logs")
    TrainerState(**content)  # an unknown key: TypeError


def newest_complete(output_dir: str | os.PathLike[str], read_all: bool = False) -> str | None:
    """The last complete checkpoint in a Trainer's `output_dir`; None if there is none.

    Args:
        output_dir: Of the Trainer.
        read_all: As in [`fault`].

    Example:

        >>> newest_complete("outputs/image_text")
        'outputs/image_text/checkpoint-400'
    """
    return next((str(folder) for folder in _checkpoints(output_dir) if fault(folder, read_all) is None), None)


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
        found = newest_complete(output_dir, read_all=True)
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
    if not _has(Path(found), _STATE_OF_RUN["optimizer.pt"]):
        logger.warning(
            f"{found} was saved with `save_only_model`: it holds no optimizer state, no learning rate schedule and no "
            "random state. Training continues from its weights and step, with a new optimizer and a schedule from its "
            "beginning: not as the uninterrupted run would."
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


def rotate(output_dir: str | os.PathLike[str], limit: int | None, kept: Iterable[str | None]) -> None:
    """Deletes checkpoints until there are `limit`: those of another run first, then the oldest in steps.

    Dates do not count: a file system may invent them, and a clock may have been wrong.

    Args:
        output_dir: Of the Trainer.
        limit: `save_total_limit`; None: nothing is deleted.
        kept: What stays in any case: the newest, without which there would be nothing to resume from, and the best.
            (Where another run got further in the same folder, the newest is not the one with the most steps.)

    Example:

        >>> rotate("outputs/image_text", 2, {"outputs/image_text/checkpoint-500"})
    """
    if limit is None:
        return
    found, stay = _checkpoints(output_dir), [Path(path).absolute() for path in kept if path is not None]
    newest = max((_step(path) for path in stay), default=0)
    candidates = [folder for folder in found if folder.absolute() not in stay]
    candidates.sort(key=lambda folder: (_step(folder) <= newest, _step(folder)))
    for folder in candidates[: max(len(found) - max(limit, 1), 0)]:
        shutil.rmtree(folder, ignore_errors=True)


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
    target, draft = Path(folder), Path(folder) / DRAFT
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
            outdated += [MANIFEST, TRAINER_STATE_NAME]
        for name in [*(name for name in _CONFIGS if Path(name) in files), *outdated]:
            (target / name).unlink(missing_ok=True)
        for path in sorted(files, key=lambda path: str(path) in _CONFIGS):  # False < True: configs last
            (target / path).parent.mkdir(exist_ok=True, parents=True)
            os.replace(draft / path, target / path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def amended(
    folder: str | os.PathLike[str], settings: Mapping[str, Any], is_writer: bool, wait: Callable[[], None]
) -> Iterator[str]:
    """Gives a folder for files of a complete checkpoint that are written again; they replace it when the block ends.

    A crash before leaves the checkpoint as it was; one after it is made good by [`finish_amending`].

    Args:
        folder: The checkpoint.
        settings: For its new manifest.
        is_writer: Whether this process moves the files.
        wait: For all processes.

    Example:

        >>> with amended("outputs/image_text/checkpoint-500", settings, True, lambda: None) as draft:
        ...     trainer.state.save_to_json(os.path.join(draft, "trainer_state.json"))
    """
    draft = Path(folder) / DRAFT
    if is_writer:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    wait()
    yield str(draft)
    wait()
    if is_writer:
        write_manifest(folder, settings, into=draft)
        draft.rename(Path(folder) / _AMENDED)
        finish_amending(folder)


def finish_amending(folder: str | os.PathLike[str]) -> None:
    """Moves the files that [`amended`] has left in a checkpoint's `_amended` to their places, the manifest last.

    Example:

        >>> finish_amending("outputs/image_text/checkpoint-500")  # as `fault` does
    """
    waiting = Path(folder) / _AMENDED
    files = [path.relative_to(waiting) for path in waiting.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == MANIFEST):  # False < True
        os.replace(waiting / path, Path(folder) / path)
    if waiting.is_dir():
        shutil.rmtree(waiting)
