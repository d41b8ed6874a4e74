"""The README and its pages: their blocks, and the commands in them."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    "README.md": README,
    **{path.name: path.read_text(encoding="utf-8") for path in (ROOT / "recipes" / "results").glob("[!R]*.md")},
    "results": (ROOT / "recipes" / "results" / "README.md").read_text(encoding="utf-8"),
}


def blocks(language: str, page: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def commands(page: str = README) -> list[list[str]]:
    """Every `hf-dgl` command of a page as words, without comments."""
    lines = [line for block in blocks("bash", page) for line in block.splitlines()]
    parts = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [words[1:] for words in parts if words and words[0] == "hf-dgl"]
