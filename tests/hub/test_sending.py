"""An upload that takes long says so, and nobody reads a token in a message."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from hf_dgl.hub import sending
from hf_dgl.hub.sending import Sending
from hf_dgl.hub.tokens import redacted


def test_a_silent_upload_shows_that_it_goes_on(tmp_path: Path, monkeypatch: Any) -> None:
    said: list[str] = []
    monkeypatch.setattr(sending, "_SILENCE", 0.02)
    monkeypatch.setattr(sending.logger, "warning", said.append)
    (tmp_path / "model.safetensors").write_bytes(b"0" * 3 * 2**20)
    upload = Sending(None, "user/digits", {"model.safetensors": tmp_path / "model.safetensors"})  # type: ignore[arg-type]
    assert upload.by(lambda: time.sleep(0.2)) is None
    assert len(said) >= 2 and said[0] == "Uploading 3.0 MB to user/digits: 0 min so far."
    count = len(said)
    time.sleep(0.1)
    assert len(said) == count
    monkeypatch.setattr(sending, "_SILENCE", 60.0)
    assert upload.by(lambda: 7) == 7 and len(said) == count


@pytest.mark.parametrize(
    "token", ["hf_" + "aB3" * 11, "hf_oauth_eyJhbGciOiJIUzI1NiJ9.e30.x-y_z", "hf_jwt_eyJhbGci", "api_org_" + "x" * 34]
)
def test_redacted(token: str) -> None:
    assert redacted(f"got {token!r} and {token} here") == "got 'hf_***' and hf_*** here"


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("https://me:pa55@data.org/my.csv", "https://***@data.org/my.csv"),
        ("s3.org://a.b/x.csv?X-Amz-Signature=ab12&part=1", "s3.org://a.b/x.csv?X-Amz-Signature=***&part=1"),
        ("https://x.net/my.csv?sv=2&sig=a%2Fb&design=oak", "https://x.net/my.csv?sv=2&sig=***&design=oak"),
        ("https://x.net/my.csv?api_key=1 and ?token=2", "https://x.net/my.csv?api_key=*** and ?token=***"),
        ("https://x.net:8080/a@b?monkey=1", "https://x.net:8080/a@b?monkey=1"),
    ],
)
def test_what_lets_into_an_address_is_redacted(address: str, expected: str) -> None:
    assert redacted(address) == expected


def test_words_that_are_no_token_stay() -> None:
    text = "hf_dgl hf_hub_download hf-internal-testing/tiny api_org hf_transfer_enabled_by_default_everywhere_here"
    assert redacted(text) == text
