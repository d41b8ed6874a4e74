"""What the threat model of CONTRIBUTING.md promises about files of others: they are read, and never run."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
import yaml

import hf_dgl
from hf_dgl.cli import main
from hf_dgl.models import CrossModalForSequenceClassification
from hf_dgl.training.manifest import read_manifest, write_manifest
from tests.recipes import tiny_recipe
from tests.tiers import slow_but
from tests.tiny import tiny_model
from tests.training.test_trainer import make

ROOT = Path(__file__).parents[2]


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    make(folder, save_strategy="steps", save_steps=1, max_steps=1).train()
    return folder / "checkpoint-1"


@pytest.mark.parametrize(
    "name", slow_but("optimizer.pt", of=["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
)
def test_a_checkpoint_cannot_run_code(tmp_path: Path, checkpoint: Path, name: str) -> None:
    """Its manifest is the attacker's, too."""
    folder, mark = shutil.copytree(checkpoint, tmp_path / "checkpoint-1"), tmp_path / "mark"
    torch.save(Evil(mark), folder / name)
    write_manifest(folder, read_manifest(checkpoint)["settings"])  # type: ignore[index]
    trainer = make(tmp_path, save_strategy="steps", save_steps=1, max_steps=2)
    if name == "training_args.bin":
        trainer.train(resume_from_checkpoint=str(folder))  # it is never read
    else:
        with pytest.raises(ValueError, match="Cannot resume from .* other objects than tensors and numbers"):
            trainer.train(resume_from_checkpoint=str(folder))
    assert not mark.exists()


def test_weights_cannot_run_code(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(tmp_path / "mark")))
    with pytest.raises((OSError, ValueError, RuntimeError, pickle.UnpicklingError)):
        CrossModalForSequenceClassification.from_pretrained(tmp_path / "model")
    assert not (tmp_path / "mark").exists()


def test_the_code_of_a_model_is_not_run_unasked(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    names = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": names}))
    (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'mark')!r})\n")
    with pytest.raises((OSError, ValueError)):
        hf_dgl.pipeline(str(folder))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe(tmp_path / "out", encoders={"image": str(folder), "text": "x"})))
    assert main(["train", str(recipe)]) == 2
    assert not (tmp_path / "mark").exists()


def test_nothing_is_fetched_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training on local data and encoders from scratch opens no connection, whether or not it could."""
    asked: list[Any] = []

    def connect(self: Any, address: Any) -> None:
        asked.append(address)
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket.socket, "connect_ex", connect)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe(tmp_path / "out", max_steps=1)))
    assert main(["train", str(recipe)]) == 0
    assert asked == []


def test_each_promise_of_the_threat_model_names_a_test_that_is_there() -> None:
    section = (ROOT / "CONTRIBUTING.md").read_text().partition("## Threat model")[2].partition("\n## ")[0]
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", section)
    assert len(named) >= 10
    for path, function in named:
        assert f"def {function}(" in (ROOT / path).read_text(), f"{path}::{function}"
