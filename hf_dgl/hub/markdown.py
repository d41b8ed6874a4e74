"""Words of a user's data and folders inside Markdown: shown as they are, whatever they hold."""

from __future__ import annotations

import re
from urllib.parse import quote

_SPECIAL = re.compile(r"[\\`*{}\[\]<>#!|~$&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def plain(text: object) -> str:
    """Text in one line in which nothing is markup.

    Example:

        >>> print(plain("a <b>\\n| c_d *e*"))
        a \\<b\\> \\| c_d \\*e\\*
    """
    return _SPECIAL.sub(r"\\\g<0>", " ".join(str(text).split()))


def code(text: object) -> str:
    """A code span that shows a text in one line, backticks included.

    Example:

        >>> print(code("a`b"), code("cat"))
        ``a`b`` `cat`
    """
    line = " ".join(str(text).split()) or " "
    fence = "`" * (_longest_run(line) + 1)
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line}{space}{fence}"


def fence_around(text: str) -> str:
    """Backticks, more than a block of text holds."""
    return "`" * max(3, _longest_run(text) + 1)


def cell(markdown: str) -> str:
    """A piece of Markdown that stands in a table."""
    return re.sub(r"(?<!\\)\|", r"\\|", markdown)


def link(text: str, address: str) -> str:
    """A link whose address is `address` with everything quoted that an address cannot hold."""
    return f"[{plain(text)}]({quote(address, safe=':/@')})"


def _longest_run(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
