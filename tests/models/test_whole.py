"""A fine-tuned model whose files are damaged or mixed up is refused in one sentence, and answers nothing."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_dgl.cli import main
from hf_dgl.inference.cross_modal_pipeline import CrossModalPipeline
from hf_dgl.models.native import load_trained
from hf_dgl.recipe.assembly import assemble
from hf_dgl.recipe.recipe import make_recipe
from tests.native_checkpoints import save_checkpoint
from tests.recipes import tiny_recipe
from tests.tiny import tiny_model, tiny_processor

WEIGHTS = "model.safetensors"
LOST = "cross_modal.encoders.text.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    CrossModalPipeline(tiny_model(), tiny_processor()).save_pretrained(folder)
    return folder


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(found, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def config(**values: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "cut short": (lambda folder: os.truncate(folder / WEIGHTS, 5000), "Its files are damaged"),
    "empty": (lambda folder: os.truncate(folder / WEIGHTS, 0), "Its files are damaged"),
    "a weight missing": (weights(lambda found: found.pop(LOST)), f"{LOST}: missing"),
    "weights too many": (
        weights(lambda found: found.update(x=torch.ones(1), y=torch.ones(1))),
        "x and 1 more: not of",
    ),
    "more layers": (config(num_fusion_layers=3), "more: missing"),
    "fewer layers": (config(num_fusion_layers=1), "more: not of this model"),
    "another width": (config(fusion_intermediate_size=8), "more: of another shape"),
    "fewer classes": (config(id2label={"0": "a", "1": "b"}), "classifier.bias and 1 more: of another shape"),
    "a number in words": (config(num_fusion_layers="two"), "TypeError"),
    "deep": (
        lambda folder: (folder / "config.json").write_text('{"a":' * 10**5 + "1" + "}" * 10**5),
        "RecursionError",
    ),
    "a processor": (lambda folder: (folder / "image/preprocessor_config.json").unlink(), "processor of 'image'"),
    "a tokenizer": (lambda folder: (folder / "text/tokenizer.json").unlink(), "processor of 'text'"),
    "NaN": (weights(lambda found: found["classifier.weight"].fill_(float("nan"))), "scores are NaN or infinite"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_no_answer_comes_from_a_damaged_model(name: str, saved: Path, tmp_path: Path, capsys: Any) -> None:
    damage, message = DAMAGES[name]
    folder = shutil.copytree(saved, tmp_path / "model")
    damage(folder)
    assert main(["predict", str(folder), "--text", "a digit"]) == 2
    printed = capsys.readouterr()
    (told,) = [line for line in printed.err.splitlines() if line.startswith("hf-dgl predict: ")]
    assert message in told and printed.out == ""


def test_a_pickle_in_place_of_weights(saved: Path, tmp_path: Path, capsys: Any) -> None:
    folder = shutil.copytree(saved, tmp_path / "model")
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(print))
    assert main(["predict", str(folder), "--text", "a digit"]) == 2
    assert "Its files are damaged" in capsys.readouterr().err


def test_what_is_trained_further_may_have_a_new_head_only(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "model")
    values = {**tiny_recipe(tmp_path / "out"), "model_name_or_path": str(folder)}
    del values["encoders"]
    assert assemble(make_recipe(values)).model.num_labels == 10  # it had another number
    weights(lambda found: found.pop(LOST))(folder)
    with pytest.raises(ValueError, match=f"{LOST}: missing"):
        assemble(make_recipe(values))


@pytest.mark.slow
def test_a_checkpoint_with_a_fusion_of_its_own(tmp_path: Path) -> None:
    folder = Path(save_checkpoint("flava", tmp_path / "model"))
    lost = "flava.text_model.embeddings.word_embeddings.weight"
    weights(lambda found: found.pop(lost))(folder)
    with pytest.raises(ValueError, match=f"{lost}: missing"):
        load_trained(str(folder))


def test_a_mistyped_name_that_could_be_on_the_hub(saved: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    shutil.copytree(saved, tmp_path / "outputs" / "digits")
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "digitz", "--text", "a"]) == 2
    assert "did you mean 'outputs/digits'?" in capsys.readouterr().err
