"""Files that a row names by address or by path, brought here."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

_MAX_DOWNLOAD = 256 * 2**20  # bytes of one image or audio file


def located(value: Any, timeout: float, folder: str | Path | None) -> Any:
    """A media value whose address is fetched, and whose relative path is told what it is relative to."""
    if isinstance(value, str) and value.lower().startswith(("http://", "https://")):
        return {"path": value, "bytes": fetch(value, timeout)}
    return Path(folder, value) if folder is not None and isinstance(value, str) else value


def fetch(url: str, timeout: float = 10.0) -> bytes:
    """What lies at an http(s) address.

    Args:
        url: The address.
        timeout: Seconds that the server may be silent.

    Raises:
        ValueError: names the address and what is wrong: no such server, no answer in time, an error page, too large.

    Example:

        >>> image = load_image(fetch("https://example.com/cat.png"))
    """
    request = urllib.request.Request(url, headers={"User-Agent": "hf_dgl"})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            content = answer.read(_MAX_DOWNLOAD + 1)
    except urllib.error.HTTPError as error:
        raise ValueError(f"Cannot fetch {url}: the server answered {error.code} {error.reason}.") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            reason = f"no answer within {timeout:g} seconds; more: timeout={2 * timeout:g}"
        raise ValueError(f"Cannot fetch {url}: {reason}.") from error
    if len(content) > _MAX_DOWNLOAD:
        raise ValueError(f"Cannot fetch {url}: it is larger than {_MAX_DOWNLOAD // 2**20} MiB.")
    return content
