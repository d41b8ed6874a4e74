"""`hf-dgl push`: a folder that was trained before, and the Space with its demo page."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd
from safetensors import SafetensorError, safe_open

from .sending import Sending
from .space import space_files
from .uploads import explaining, hub_api


def push(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> str:
    """Uploads what a training run saved; its card then names the repository.

    Args:
        folder: An output folder, its `adapter`, or one of its checkpoints.
        repo_id: `user/name`; made if it is not there.
        private: Whether a new repository can be seen by nobody else.
        revision: Branch; made if it is not there. Default: `main`.
        token: Default: that of `hf auth login`, or `HF_TOKEN`.

    Returns:
        The address of what was uploaded.

    Raises:
        ValueError: the folder holds no model, or one that cannot be loaded elsewhere, or a token; or `private` is
            asked for and the repository is public.
        OSError: the Hub refuses or cannot be reached; says what to type.

    Example:

        >>> push("outputs/image_text", "user/digits", private=True)
        'https://huggingface.co/user/digits'
    """
    folder = Path(folder)
    _check_is_model(folder)
    with explaining(repo_id, folder):
        api = hub_api()
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True, token=token).repo_id
        _name_in_card(folder / "README.md", repo_id, revision)
        api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=revision, token=token, commit_message="Upload with hf-dgl"
        )
    address = f"{api.endpoint}/{repo_id}"
    return f"{address}/tree/{revision}" if revision else address


def push_space(model_id: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Makes a Space `user/name-demo` that shows a model: the page of `hf-dgl demo`.

    Args:
        model_id: `user/name`, on the Hub already.
        private: Whether a new Space can be seen by nobody else.
        token: Default: that of `hf auth login`, or `HF_TOKEN`.

    Returns:
        The address of the Space.

    Raises:
        ValueError: the extra `demo` is not installed (its version goes into the Space's settings).
        OSError: the Hub refuses or cannot be reached; says what to type.

    Example:

        >>> push_space("user/digits")
        'https://huggingface.co/spaces/user/digits-demo'
    """
    files = space_files(model_id)
    repo_id = f"{model_id}-demo"
    with explaining(repo_id, Path.cwd()):
        api = hub_api()
        api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True, token=token)
        contents = {name: text.encode() for name, text in files.items()}
        added = [CommitOperationAdd(name, content) for name, content in contents.items()]
        kind: Any = {"repo_type": "space", "token": token}
        send = functools.partial(api.create_commit, repo_id, added, commit_message="Demo by hf-dgl", **kind)
        Sending(api, repo_id, contents, token=token, repo_type="space").by(send)
    return f"{api.endpoint}/spaces/{repo_id}"


def _check_is_model(folder: Path) -> None:
    names = {path.name for path in folder.glob("*")}
    if not names & {"config.json", "adapter_config.json"}:
        there = f"which holds {sorted(names)[:8]}" if names else "where there is nothing"
        raise ValueError(
            f"Got {folder}, {there}; expected a folder with a model (config.json, model.safetensors): the output "
            "folder of `hf-dgl train`, its `adapter`, or a checkpoint."
        )
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):  # reads its outline
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{path} is damaged ({error}), so nothing was uploaded. Train again, or push one of its checkpoints."
            ) from error


def _name_in_card(card: Path, repo_id: str, revision: str | None) -> None:
    """Lets the card's code load the repository in place of the folder."""
    if card.is_file():
        source = f'"{repo_id}", revision="{revision}"' if revision else f'"{repo_id}"'
        string = r'"(?:[^"\\]|\\.)*"'
        text = re.sub(
            rf"(from_pretrained\(){string}(, revision={string})?",
            lambda found: found[1] + source,
            card.read_text(encoding="utf-8"),
        )
        card.write_text(text, encoding="utf-8")
