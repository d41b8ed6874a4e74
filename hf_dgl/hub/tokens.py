"""Access tokens: how they look, and that nobody gets to read them."""

from __future__ import annotations

import re

TOKEN = re.compile(r"\b(?:hf_(?:oauth|jwt)_[A-Za-z0-9_.=-]{8,}|(?:hf|api_org)_[A-Za-z0-9]{30,})")
"""User and organisation tokens, and those that a login in the browser gives (`hf_oauth_...`, `hf_jwt_...`)."""

_OF_ADDRESS = (
    re.compile(r"(?<=://)[^\s/@?#]+:[^\s/@?#]*(?=@)"),  # user:password@
    re.compile(
        r"(?<=[?&])((?:[\w.-]*(?:token|signature|secret|password|credential|api_?key|access_?key)|sig|key|auth)=)"
        r"[^&#\s'\"]+",
        re.IGNORECASE,
    ),
)
"""What lets into an address whoever has it: a password, a signature."""


def redacted(text: str) -> str:
    """A text without the tokens in it, and without the passwords and signatures of addresses.

    Example:

        >>> redacted("expected a list, got 'hf_abcdefghijklmnopqrstuvwxyzabcdefghij'")
        "expected a list, got 'hf_***'"
    """
    text = TOKEN.sub("hf_***", text)
    if "://" in text:
        password, signature = _OF_ADDRESS
        text = signature.sub(r"\1***", password.sub("***", text))
    return text
