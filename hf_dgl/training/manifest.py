"""The list of a checkpoint's files, written when all of them are there: what is missing or damaged later is noticed.

| file | what the manifest holds | what it costs |
|---|---|---|
| large, pickled by torch (a zip) | a checksum of its table of contents, with CRC-32s | nothing; to check: `testzip` |
| any other | a checksum of its content (xxHash3) | a hundredth of the time it took to write the file |

The manifest also holds the settings of the run (`resume.py` compares them with those of the run that resumes).
"""

from __future__ import annotations

import json
import mmap
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

MANIFEST = "manifest.json"

_SMALL = 4 * 2**20  # bytes; below, an archive is read whole, the gaps between its parts too
_MAY_CHANGE = (".md", ".html", ".png")  # cards and pictures are for readers: nothing is resumed from them


def write_manifest(
    folder: str | os.PathLike[str], settings: Mapping[str, Any], into: str | os.PathLike[str] | None = None
) -> None:
    """Writes down what a complete checkpoint consists of; in one step, as the last of its files.

    Args:
        folder: The checkpoint, all of whose files are written.
        settings: Of the run; whatever JSON can hold.
        into: A folder with files that are about to replace the checkpoint's; the manifest is written there, and tells
            of the checkpoint as it will be.

    Example:

        >>> write_manifest("outputs/image_text/checkpoint-500", settings_of(trainer))
    """
    folder, place = Path(folder), Path(folder if into is None else into)
    paths = _files(folder) if into is None else {**_files(folder), **_files(place)}
    files = {name: {"bytes": path.stat().st_size, "checksum": _checksum(path)} for name, path in sorted(paths.items())}
    found = {"files": files, "settings": settings}
    draft = place / f"{MANIFEST}.draft"
    draft.write_text(json.dumps({**found, "checksum": _of_json(found)}, indent=1) + "\n", encoding="utf-8")
    os.replace(draft, place / MANIFEST)


def _files(folder: Path) -> dict[str, Path]:
    """Those that a manifest lists, by their names in it; not drafts (`_saving`)."""
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {
        name.as_posix(): path
        for name, path in found.items()
        if path.suffix not in (*_MAY_CHANGE, ".draft") and path.name != MANIFEST and not name.parts[0].startswith("_")
    }


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """`{"files": ..., "settings": ...}`; None if the folder has no manifest (of an older release, or of `Trainer`).

    Raises:
        ValueError: it cannot be read.

    Example:

        >>> read_manifest("outputs/image_text/checkpoint-500")["settings"]["method"]
        'dgl'
    """
    path = Path(folder, MANIFEST)
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict) or found.pop("checksum", None) != _of_json(found):
        raise ValueError("its content is not what was written")
    return found


def damage(folder: str | os.PathLike[str], read_all: bool = True) -> str | None:
    """Where a checkpoint is not what its manifest says.

    Args:
        folder: The checkpoint.
        read_all: False compares sizes only.

    Returns:
        A few words on the first such file; None: all is well, or there is no manifest.

    Example:

        >>> damage("outputs/image_text/checkpoint-500")
        'model.safetensors is damaged: its content is not what was written'
    """
    try:
        manifest = read_manifest(folder)
    except (ValueError, OSError) as error:
        return f"{MANIFEST} is damaged ({error})"
    for name, written in (manifest or {"files": {}})["files"].items():
        path = Path(folder, name)
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != written["bytes"]:
            return f"{name} is damaged: it has {path.stat().st_size:,} bytes, {written['bytes']:,} were written"
        if read_all and not _is_as_written(path, written["checksum"]):
            return f"{name} is damaged: its content is not what was written"
    return None


def _checksum(path: Path) -> str:
    if path.stat().st_size >= _SMALL and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            file.seek(archive.start_dir)  # names, sizes, places and CRC-32 of the parts
            return f"zip:{xxhash.xxh3_64_hexdigest(file.read())}"
    with path.open("rb") as file:
        if path.stat().st_size == 0:  # which cannot be mapped
            return f"xxh3:{xxhash.xxh3_64_hexdigest(b'')}"
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return f"xxh3:{xxhash.xxh3_64_hexdigest(content)}"


def _of_json(content: Any) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(content, sort_keys=True).encode())


def _is_as_written(path: Path, checksum: str) -> bool:
    try:
        if checksum.startswith("zip:"):
            with zipfile.ZipFile(path) as archive:
                if archive.testzip() is not None:
                    return False
        return _checksum(path) == checksum
    except Exception:  # a damaged archive makes `zipfile` raise whatever its bytes lead to
        return False
