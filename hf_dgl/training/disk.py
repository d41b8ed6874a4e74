"""A folder that cannot be written into: tried before a run, and one sentence when it happens."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from .checkpoints import DRAFT, newest_complete


def check_can_write(output_dir: str | os.PathLike[str]) -> None:
    """Writes a file into a run's folder, and takes it away: better now than after hours.

    Raises:
        OSError: the folder cannot be made or written into.

    Example:

        >>> check_can_write("outputs/image_text")
    """
    draft = Path(output_dir, DRAFT)
    draft.mkdir(parents=True, exist_ok=True)
    (draft / "probe").write_text("probe")
    shutil.rmtree(draft)


@contextmanager
def explaining_a_full_disk(output_dir: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what safetensors, torch and Python raise when a folder cannot be written into into one error.

    Raises:
        OSError: what is wrong (no room, no inodes, read-only, no right, gone), what to do, and which complete
            checkpoint there is.

    Example:

        >>> with explaining_a_full_disk("outputs/image_text"):
        ...     trainer.save_model()
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_about_writing(error, Path(output_dir)):
            raise
        newest = newest_complete(output_dir)
        then = f"continue from {newest}, which is complete, with `resume_from_checkpoint: true`"
        raise OSError(
            f"Could not write into {output_dir}, {_state_of_disk(error, Path(output_dir))} ({error}). "
            "Mend that, or choose another `output_dir`; then "
            f"{then if newest else 'start again (there is no complete checkpoint yet)'}."
        ) from error


def _state_of_disk(error: BaseException, folder: Path) -> str:
    """Why nothing can be written, as far as the disk tells, and what to do."""
    number = getattr(error, "errno", None)
    if number == errno.EROFS or "Read-only file system" in str(error):
        return "whose disk is mounted read-only"
    if number in (errno.EACCES, errno.EPERM) or "Permission denied" in str(error):
        return "where you may not write"
    if not folder.is_dir():
        return "a folder that is not there any more, or cannot be made"
    disk = os.statvfs(folder)
    room = f"whose disk has {disk.f_bavail * disk.f_frsize / 2**20:.1f} MB left"
    if disk.f_files and disk.f_favail < _FILES_OF_A_CHECKPOINT:
        return f"{room}, but inodes for few more files: {disk.f_favail}; delete some"
    return f"{room}: make room there, or choose a smaller `save_total_limit`"


_FILES_OF_A_CHECKPOINT = 50  # at most, as a rule
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_NO_WAY = (errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EEXIST)
# torch's writer says "unexpected pos 576 vs 534" or "iostream error" when the disk is full, and nothing else.
_SIGNS = "No space left on device|inline_container|iostream error|Parent directory|Read-only file|os error [0-9]+"


def _is_about_writing(error: Exception, folder: Path) -> bool:
    if not isinstance(error, OSError):
        return re.search(_SIGNS, str(error)) is not None
    if error.errno in _NO_WAY and error.filename is not None:  # of this folder, not of the data
        path, folder = Path(os.fsdecode(error.filename)).absolute(), folder.absolute()
        return path.is_relative_to(folder) or folder.is_relative_to(path)
    return error.errno in _NO_ROOM
