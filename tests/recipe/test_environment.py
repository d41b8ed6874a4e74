from __future__ import annotations

import subprocess
from importlib.metadata import version
from pathlib import Path

import numpy as np
import psutil
import torch

from hf_dgl.recipe.environment import commit, environment, peak_memory_mib


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    return subprocess.run(
        ["git", "-C", str(folder), *who, *words], capture_output=True, text=True, check=True
    ).stdout.strip()


def test_commit_of_a_checkout(tmp_path: Path) -> None:
    package = tmp_path / "pack"
    package.mkdir()
    assert commit(package) == version("hf-dgl")  # no checkout
    git(tmp_path, "init", "-q")
    assert commit(package) == version("hf-dgl")  # nothing is committed
    (package / "a.py").write_text("1")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "one")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert len(head) == 40 and commit(package) == head
    (tmp_path / "results.md").write_text("not the source")
    assert commit(package) == head
    (package / "b.py").write_text("2")
    assert commit(package) == f"{head}+dirty"
    (package / "b.py").unlink()
    (package / "a.py").write_text("3")
    assert commit(package) == f"{head}+dirty"


def test_an_environment_inside_of_a_checkout_has_no_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    package = tmp_path / "venv" / "pack"
    package.mkdir(parents=True)
    (package / "a.py").write_text("1")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "somebody's project")
    assert commit(package) == version("hf-dgl")


def test_environment() -> None:
    found = environment()
    assert found["commit"] == commit() and found["versions"]["torch"] == version("torch")
    assert found["machine"]["cpu"] and found["machine"]["cores"] >= 1


def test_peak_memory_is_not_below_what_is_held_and_stays_when_memory_is_given_back() -> None:
    cpu, filled = torch.device("cpu"), np.ones(64 * 2**17)  # 64 MiB
    held, peak = psutil.Process().memory_info().rss / 2**20, peak_memory_mib(cpu)
    assert held > 64 and peak > held - 8  # Linux counts by threads, and adds up now and then
    del filled
    assert peak_memory_mib(cpu) > peak - 8
