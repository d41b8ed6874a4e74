"""Files that a row names by an http(s) address: fetched within bounds, kept for the next time."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import datasets

MAX_DOWNLOAD = 256 * 2**20  # bytes of one image or audio file


def fetch(url: str, timeout: float = 10.0) -> bytes:
    """What lies at an http(s) address.

    Args:
        url: The address.
        timeout: Seconds that the server may be silent.

    Raises:
        ValueError: names the address and what is wrong: no such server, no answer in time, an error page, too large.

    Example:

        >>> image = load_image(fetch("https://example.com/cat.png"))  # doctest: +SKIP
    """
    request = urllib.request.Request(url, headers={"User-Agent": "hf_dgl"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            content = answer.read(MAX_DOWNLOAD + 1)
    except urllib.error.HTTPError as error:
        raise ValueError(f"Cannot fetch {url}: the server answered {error.code} {error.reason}.") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            reason = f"no answer within {timeout:g} seconds; more: timeout={2 * timeout:g}"
        raise ValueError(f"Cannot fetch {url}: {reason}.") from error
    if len(content) > MAX_DOWNLOAD:
        raise ValueError(f"Cannot fetch {url}: it is larger than {MAX_DOWNLOAD // 2**20} MiB.")
    return content


def fetch_once(url: str) -> bytes:
    """As [`fetch`], but what was fetched before, by any process, is read from `datasets`' cache folder.

    Raises:
        ValueError: as [`fetch`]; failures are not kept.
    """
    path = Path(datasets.config.HF_DATASETS_CACHE) / "hf_dgl_files" / hashlib.sha256(url.encode()).hexdigest()
    if path.is_file():
        return path.read_bytes()
    content = fetch(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:  # other workers never see half a file
        file.write(content)
    os.replace(file.name, path)
    return content
