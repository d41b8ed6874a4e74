"""A Hub on localhost, and a process of its users (huggingface_hub reads HF_ENDPOINT when it is imported)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub.server import Hub, User

ROOT = Path(__file__).parents[2]
TOKEN = "hf_" + "abcdefghij" * 4
READ_TOKEN = "hf_" + "readreadre" * 4
EXPIRED_TOKEN = "hf_" + "expiredexp" * 4

Client = Callable[..., Any]


@pytest.fixture(scope="session")
def server() -> Iterator[Hub]:
    with Hub({TOKEN: User("user"), READ_TOKEN: User("user", may_write=False)}) as hub:
        yield hub


@pytest.fixture
def hub(server: Hub) -> Iterator[Hub]:
    yield server
    server.failures.clear()


@pytest.fixture(scope="session")
def environment(server: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path_factory.mktemp("hf_home")),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",  # the server speaks LFS
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "5",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }


@pytest.fixture(scope="session")
def client(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """`client("cli", words=[...])` calls that function of `tests/hub/worker.py` in a process of its own."""
    log = tmp_path_factory.mktemp("worker") / "log.txt"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.hub.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=environment,
            cwd=ROOT,
        )

        def call(function: str, **arguments: Any) -> Any:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(json.dumps({"call": function, **arguments}) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            assert line, log.read_text()
            answer = json.loads(line)
            assert not (isinstance(answer, dict) and "raised" in answer), answer.get("trace", answer)
            return answer

        yield call
        process.stdin.close()  # type: ignore[union-attr]
        process.wait(timeout=30)
