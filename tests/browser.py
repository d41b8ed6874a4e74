"""Pages in a real browser: Chromium (Debian's), and axe-core (npm's) that looks for what people cannot read."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
SCREENS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]
"""A desk and a phone, by day and by night."""
_RULES = {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}


@contextmanager
def browser() -> Iterator[Any]:
    """A Chromium of Playwright's; skips the test where either is not installed."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@functools.cache
def axe_core() -> str:
    """axe-core's script; skips the test where npm is not installed, or does not reach its registry."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("npm is not installed")
    folder = Path(tempfile.mkdtemp())
    packed = subprocess.run(
        [npm, "pack", "--silent", "axe-core@4"], cwd=folder, capture_output=True, text=True, timeout=120
    )
    if packed.returncode:
        pytest.skip(f"npm cannot fetch axe-core: {packed.stderr.strip()[:200]}")
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as file:
        script = file.extractfile("package/axe.min.js")
        assert script is not None
        return script.read().decode()


def violations(page: Any) -> list[str]:
    """What axe finds: names that screen readers miss, contrast below 4.5, ..."""
    page.evaluate(axe_core())
    found = page.evaluate("rules => axe.run(document, {runOnly: rules})", _RULES)["violations"]
    return [
        f"{entry['id']}: {node['html'][:160]} {node['failureSummary']}" for entry in found for node in entry["nodes"]
    ]


def overflow(page: Any) -> int:
    """Pixels by which a page is wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
