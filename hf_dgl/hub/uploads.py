"""The Hub: what is uploaded and what never is, and what its errors mean.

huggingface_hub uploads, called by the Trainer or by [`push`]; what stands here is which files, and words for errors.
A repository gets what somebody else can use: weights, configurations, processors, the model's code, card, report and
scores. The state of a run stays here: optimizer, scheduler, random numbers, scaler, arguments, logs, the recipe's file
(whose folders are of this machine; the card shows it without them), and the adapters beside a merged model.
"""

from __future__ import annotations

import functools
import glob
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import transformers.trainer
from huggingface_hub import HfApi, RepoUrl, constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import filter_repo_objects
from transformers.utils import logging

from .sending import NotSeen, Sending, is_of_network
from .tokens import TOKEN, redacted

logger = logging.get_logger(__name__)

UPLOADED = "*.safetensors *.json *.txt *.model *.jinja *.py *.md *.png *.html LICENSE*".split()
"""Files that may be uploaded: no pickles among them."""

KEPT_BACK = (
    "_* checkpoint-* runs/* adapter/* *trainer_state.json *optimizer* *scheduler* *rng_state* *scaler* "
    "*training_args* *global_step* *manifest.json *environment.json"
).split()
"""Of these, files that never are. (`runs`: TensorBoard's files, with the host's name and all arguments.)"""

_TOKEN = re.compile(TOKEN.pattern.encode())
_TOKENS_PAGE = "https://huggingface.co/settings/tokens"


@contextmanager
def uploads(repo_id: str, folder: str | os.PathLike[str] | None) -> Iterator[None]:
    """Inside, a Trainer uploads by the rules of this file. It has no argument for what to leave out.

    Args:
        repo_id: As the user wrote it, for messages.
        folder: Where the model lies, for messages; None if nothing was trained yet.

    Example:

        >>> with uploads("user/digits", "outputs/image_text"):
        ...     trainer.push_to_hub()  # of a plain `transformers.Trainer`
    """
    original = transformers.trainer.hf_api
    transformers.trainer.hf_api = hub_api
    try:
        with explaining(repo_id, folder):
            yield
    finally:
        transformers.trainer.hf_api = original


@contextmanager
def explaining(repo_id: str, folder: str | os.PathLike[str] | None = None) -> Iterator[None]:
    """Turns what huggingface_hub raises into one message: what is wrong, where the model is, what to type.

    Raises:
        OSError: in place of the errors of huggingface_hub and of the network.

    Example:

        >>> with explaining("user/digits", "outputs/image_text"):
        ...     HfApi().upload_folder(repo_id="user/digits", folder_path="outputs/image_text")
    """
    try:
        yield
    except Exception as error:
        reason = _reason(error, repo_id)
        if reason is None:
            raise
        if folder is None:
            then = "Nothing was trained yet. Then start again, or leave `push_to_hub` out."
        else:
            command = shlex.join(["hf-dgl", "push", str(folder), str(repo_id)])
            then = f"The model is complete in {folder}. To upload it, type: {command}"
        raise OSError(f"{reason} {then}") from error


def copy_what_upstream_does_not(checkpoint: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Of the files that make a checkpoint loadable, the Trainer uploads those whose names it knows: here are the rest.

    Args:
        checkpoint: From here,
        folder: to here, from where it uploads.

    Example:

        >>> copy_what_upstream_does_not("outputs/image_text/checkpoint-50", "outputs/image_text")
    """
    for file in [*Path(checkpoint).glob("*.py"), Path(checkpoint, "base.json")]:
        if file.is_file():
            shutil.copy2(file, folder)


class _Api(HfApi):
    """`HfApi` by the rules of this file, for [`push`] and for the Trainer."""

    def create_repo(self, repo_id: str, **kwargs: Any) -> Any:
        """Refuses to put into a public repository what was to be private (upstream's `private` is for new ones)."""
        token = kwargs.get("token")
        _check_token(token if isinstance(token, str) else get_token())
        try:
            url = super().create_repo(repo_id, **kwargs)
        except (KeyError, json.JSONDecodeError):  # "409: it exists", without its address, which upstream counts on
            kind = kwargs.get("repo_type") or constants.REPO_TYPE_MODEL
            info = self.repo_info(repo_id, repo_type=kind, token=token)
            url = RepoUrl(f"{self.endpoint}/{constants.REPO_TYPES_URL_PREFIXES.get(kind, '')}{info.id}")
        if kwargs.get("private") and not self.model_info(url.repo_id, token=token).private:
            raise ValueError(
                f"{url.repo_id} exists and is public: got private, expected a repository that is private or not there "
                "yet. Choose another name, or make it private in its settings."
            )
        return url

    def upload_folder(
        self,
        *,
        repo_id: str,
        folder_path: str | Path,
        ignore_patterns: Sequence[str] | None = None,
        run_as_future: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Leaves out what stays on this machine; makes a branch that is not there yet; sees whether it arrived."""
        folder = Path(folder_path)
        patterns: dict[str, Any] = {
            "allow_patterns": list(UPLOADED),
            "ignore_patterns": [*(ignore_patterns or ()), *KEPT_BACK, *_links(folder)],
        }
        token, revision = kwargs.get("token"), kwargs.get("revision")
        names = _check_files(folder, patterns, token)
        if revision not in (None, constants.DEFAULT_REVISION) and not str(revision).startswith("refs/"):
            self.create_branch(repo_id, branch=str(revision), token=token, exist_ok=True)
        start = f"{kwargs['path_in_repo'].strip('/')}/" if kwargs.get("path_in_repo") else ""
        sent = Sending(self, repo_id, {f"{start}{name}": folder / name for name in names}, revision, token)
        send = functools.partial(super().upload_folder, repo_id=repo_id, folder_path=folder_path, **patterns, **kwargs)
        if not run_as_future:
            return sent.by(send)
        result = self.run_as_future(sent.by, send)
        result.add_done_callback(functools.partial(_tell_failure, repo_id))
        return result


@functools.cache
def hub_api() -> _Api:
    """One for all uploads of a process: it runs those in the background one after the other."""
    return _Api(library_name="hf_dgl", library_version=version("hf-dgl"))


def _tell_failure(repo_id: str, upload: Future[Any]) -> None:
    """An upload during training may fail: the training goes on, and the one at its end uploads everything."""
    error = upload.exception()
    if error is not None:
        logger.warning(
            f"An upload during training failed. {_reason(error, repo_id) or error} Training goes on; everything is "
            "uploaded again at its end."
        )


# ---- what is uploaded -------------------------------------------------------------------------------------------


def _links(folder: Path) -> list[str]:
    """Patterns of the symbolic links in a folder: what they lead to is not of this run, and may be anything."""
    found = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink()]
    if found:
        logger.warning(f"{', '.join(found)} in {folder}: symbolic links are not followed, so they are not uploaded.")
    return [pattern for name in found for pattern in (glob.escape(name), f"{glob.escape(name)}/*")]


def _check_token(token: str | None) -> None:
    """What no HTTP header can hold would be quoted in the error of whoever tries."""
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError(
            "The Hub token (HF_TOKEN, `hub_token`, or that of `hf auth login`) holds a space, a line break or a "
            f"letter that no token has. Copy it again from {_TOKENS_PAGE}."
        )


def _check_files(folder: Path, patterns: Mapping[str, Any], token: str | bool | None) -> list[str]:
    """The files that are uploaded: no token in them, and no adapter that builds on a folder of this machine."""
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    secrets = [value.encode() for value in (token, get_token()) if isinstance(value, str)]
    names = list(filter_repo_objects(files, **patterns))
    for name in names:
        if name.endswith((".safetensors", ".png")):
            continue
        content = (folder / name).read_bytes()
        if _TOKEN.search(content) or any(secret in content for secret in secrets):
            raise ValueError(
                f"{folder / name} holds an access token, so nothing was uploaded. Take it out of the file; if it was "
                f"ever shared, revoke it at {_TOKENS_PAGE}."
            )
    if (folder / "base.json").is_file():
        base = json.loads((folder / "base.json").read_text(encoding="utf-8"))
        for source in [base.get("model_name_or_path"), *base.get("encoders", {}).values()]:
            checkpoint = source.get("checkpoint") if isinstance(source, Mapping) else source
            if checkpoint and (os.path.isabs(checkpoint) or os.path.exists(checkpoint)):
                raise ValueError(
                    f"{folder} holds adapters of a model in {checkpoint!r}, a folder of this machine: nobody could "
                    "load them elsewhere. Upload that model first and train on its Hub id, or merge "
                    "(`peft_merge: true`)."
                )
    return names


# ---- what errors mean -------------------------------------------------------------------------------------------


def _reason(error: BaseException, repo_id: str) -> str | None:
    """What is wrong and how to mend it, or None if it is not about the Hub."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:  # an upload of many files wraps the error of one
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, LocalTokenNotFoundError):
            return f"Uploading to {repo_id} needs a token: `hf auth login` with one of {_TOKENS_PAGE} that may write."
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, so nothing can be uploaded: type `unset HF_HUB_OFFLINE`."
        if isinstance(cause, HFValidationError):
            return f"{repo_id!r} cannot be the name of a repository: got {cause}; expected user/name."
        if isinstance(cause, HfHubHTTPError) and getattr(cause, "response", None) is not None:
            return _by_status(cause, repo_id, _seen(causes))
    if any(map(is_of_network, causes)):
        return (
            f"The Hub ({constants.ENDPOINT}) cannot be reached, or broke off ({redacted(str(causes[-1]))})"
            f"{_seen(causes)}. Look at the network and your token (`hf auth whoami`), and try again."
        )
    return None


def _seen(causes: Sequence[BaseException]) -> str:
    """What was seen of an upload after its answer failed to come."""
    return next((f"; {cause}" for cause in causes if isinstance(cause, NotSeen)), "")


def _by_status(error: HfHubHTTPError, repo_id: str, seen: str) -> str:
    status = error.response.status_code
    said = redacted(f"{status} {error.server_message or error.response.reason_phrase}")
    namespace = repo_id.partition("/")[0]
    if status == 401:
        return (
            f"The Hub does not accept your token for {repo_id} ({said}); it may have expired. Type `hf auth login` "
            f"with a token of {_TOKENS_PAGE} that may write (or set HF_TOKEN)."
        )
    if status == 403:
        return (
            f"Your token may not write to {repo_id} ({said}). Is {namespace!r} your name or an organisation of yours? "
            f"Choose a name of your own (`hf auth whoami`), or a token of {_TOKENS_PAGE} that may write."
        )
    if status == 404:
        return f"There is no {repo_id} for your token, or no such branch ({said}): look at its spelling."
    if status in (409, 412):
        return (
            f"{repo_id} is in conflict ({said}): the name is taken, or somebody else is writing. Try again, or choose "
            "another name."
        )
    if status == 429:
        return f"The Hub asks for patience ({said}): too many requests. Try again later."
    if status >= 500:
        return f"The Hub is not well ({said}){seen}. Try again later."
    return f"The Hub refuses the upload to {repo_id} ({said})."
