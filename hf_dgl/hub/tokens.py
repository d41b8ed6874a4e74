"""Access tokens: how they look, and that nobody gets to read them."""

from __future__ import annotations

import re

TOKEN = re.compile(r"\b(?:hf_(?:oauth|jwt)_[A-Za-z0-9_.=-]{8,}|(?:hf|api_org)_[A-Za-z0-9]{30,})")
"""User and organisation tokens, and those that a login in the browser gives (`hf_oauth_...`, `hf_jwt_...`)."""


def redacted(text: str) -> str:
    """A text without the tokens in it.

    Example:

        >>> redacted("expected a list, got 'hf_abcdefghijklmnopqrstuvwxyzabcdefghij'")
        "expected a list, got 'hf_***'"
    """
    return TOKEN.sub("hf_***", text)
