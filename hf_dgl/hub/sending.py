"""One upload: told while it takes long, tried again when the Hub asks for it, looked for when its answer is lost.

    Sending(api, "user/digits", files).by(send)

A commit may have been made although its answer never came: the connection broke, or a proxy gave up. Then the Hub is
asked what it has, before anybody is told that there is nothing.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from transformers.utils import logging

logger = logging.get_logger(__name__)

_SILENCE = 60.0  # seconds, after which an upload is said to be on its way
_PATIENCE = 300.0  # seconds that are waited in all when the Hub says `429 Too Many Requests`
_FIRST_WAIT = 5.0  # seconds, where it does not say how long

# What httpx raises when a server cannot be reached. (Its name depends on the release of huggingface_hub.)
_NetworkError = next(base for base in HfHubHTTPError.__mro__ if base.__module__.startswith("httpx"))


class NotSeen(Exception):
    """An upload failed, and its files were looked for: the message says what was seen."""


def is_of_network(error: BaseException) -> bool:
    """Whether an error is of the way to the Hub, and not an answer of the Hub's."""
    if isinstance(error, HfHubHTTPError) and getattr(error, "response", None) is not None:
        return False
    # hf_xet speaks the protocol by which large files go to the Hub; its errors are named after Python's own
    return isinstance(error, (_NetworkError, ConnectionError)) or type(error).__module__.partition(".")[0] == "hf_xet"


@dataclass
class Sending:
    """What is sent, and where to.

    Args:
        api: Of the Hub.
        repo_id: `user/name`.
        files: Path in the repository -> file on this machine, or its content.
        revision, token, repo_type: As in `HfApi.create_commit`.
    """

    api: HfApi
    repo_id: str
    files: Mapping[str, Path | bytes]
    revision: str | None = None
    token: str | bool | None = None
    repo_type: str | None = None

    def by(self, send: Callable[[], Any]) -> Any:
        """What `send()` gives, or, where only its answer was lost, the commit that it made.

        Raises:
            NotSeen: the upload failed, and the files are not there; or nobody can say.
            Exception: as `send`, for every other error.
        """
        waited = 0.0
        with self._told_while_it_takes_long():
            while True:
                try:
                    return send()
                except Exception as error:
                    wait = _asked_to_wait(error, waited)
                    if wait is not None:
                        waited += wait
                        logger.warning(
                            f"The Hub takes no more requests for now (429): trying again in {wait:.0f} seconds."
                        )
                        time.sleep(wait)
                    elif any(map(_may_have_arrived, _causes(error))):
                        return self._looked_for(error)
                    else:
                        raise

    def _looked_for(self, error: Exception) -> CommitInfo:
        try:
            missing = self._missing()
        except (RepositoryNotFoundError, RevisionNotFoundError):
            missing = list(self.files)
        except Exception:
            raise NotSeen(
                f"whether it arrived cannot be seen from here: look at {self.api.endpoint}/{self.repo_id}"
            ) from error
        if missing:
            raise NotSeen(f"{missing[0]} of this upload is not in {self.repo_id}") from error
        info = self.api.repo_info(self.repo_id, revision=self.revision, token=self.token, repo_type=self.repo_type)
        logger.warning(
            f"The Hub's answer was lost, but all {len(self.files)} files are in {self.repo_id}: it is done."
        )
        return CommitInfo(
            commit_url=f"{self.api.endpoint}/{self.repo_id}/commit/{info.sha}",
            commit_message="",
            commit_description="",
            oid=str(info.sha),
        )

    def _missing(self) -> list[str]:
        """The files of which the Hub does not have the content."""
        there = self.api.list_repo_tree(
            self.repo_id, recursive=True, revision=self.revision, token=self.token, repo_type=self.repo_type
        )
        found = {entry.path: entry for entry in there if hasattr(entry, "size")}
        return [name for name, file in self.files.items() if not _is_same(found.get(name), file)]

    @contextmanager
    def _told_while_it_takes_long(self) -> Iterator[None]:
        done = threading.Event()
        size = sum(len(file) if isinstance(file, bytes) else file.stat().st_size for file in self.files.values())
        begun = time.monotonic()

        def tell() -> None:
            while not done.wait(_SILENCE):
                minutes = (time.monotonic() - begun) / 60
                logger.warning(f"Uploading {size / 2**20:,.1f} MB to {self.repo_id}: {minutes:.0f} min so far.")

        threading.Thread(target=tell, daemon=True).start()
        try:
            yield
        finally:
            done.set()


def _causes(error: BaseException) -> list[BaseException]:
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    return causes


def _may_have_arrived(error: BaseException) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return is_of_network(error) or (isinstance(status, int) and status >= 500)


def _asked_to_wait(error: BaseException, waited: float) -> float | None:
    """Seconds, if the Hub asks for patience and there is some left."""
    response = getattr(error, "response", None)
    if getattr(response, "status_code", None) != 429:
        return None
    said = getattr(response, "headers", {}).get("Retry-After", "")
    wait = float(said) if said.isdigit() else max(_FIRST_WAIT, waited)
    return wait if waited + wait <= _PATIENCE else None


def _is_same(entry: Any, file: Path | bytes) -> bool:
    """Whether the Hub's entry of a file has the content of one here."""
    if entry is None:
        return False
    content = file if isinstance(file, bytes) else file.read_bytes()
    if entry.lfs is not None:
        return entry.lfs.sha256 == hashlib.sha256(content).hexdigest()
    return entry.blob_id == hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
