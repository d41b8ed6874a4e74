"""A diagnosis from recipe to files: on tiny models, a few steps."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from hf_dgl.analysis.diagnosis.regime import Explained, Regime
from hf_dgl.analysis.diagnosis.result import Diagnosis
from hf_dgl.analysis.diagnosis.run import Shuffled, _own_steps, diagnose
from hf_dgl.recipe.recipe import make_recipe
from tests import regimes
from tests.native_checkpoints import save_checkpoint
from tests.recipes import TINY_ENCODERS, tiny_recipe


def write(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def found(tmp_path_factory: Any) -> tuple[Diagnosis, Path]:
    folder = tmp_path_factory.mktemp("tiny")
    values = {"method": "dgl", "multimodal_to_encoders": 0.3, "fusion_type": "concat", "max_eval_samples": 40}
    recipe = regimes.write(regimes.BENCHMARK[0], folder, max_train_samples=64, **values)
    told: list[Any] = []
    words = ["--max_steps", "6"]
    diagnosis = diagnose(recipe, words, folder / "found", lambda *what: told.append(what))
    assert [name for name, *_ in told] == ["joint", "text_a alone", "text_b alone", "bilinear fusion", ""]
    return diagnosis, folder / "found"


def test_everything_is_measured(found: tuple[Diagnosis, Path]) -> None:
    diagnosis, _ = found
    assert diagnosis.steps == 6 and set(diagnosis.gradients) == {"text_a", "text_b"}
    assert [entry["step"] for entry in diagnosis.history] == [1, 2, 3, 4, 5, 6]
    assert diagnosis.chance == pytest.approx(math.log(5), abs=0.1)
    names = [f"text_{letter} {what}" for what in ("in joint", "trained alone") for letter in "ab"]
    assert list(diagnosis.scores) == ["joint", *names, "constant"]
    assert all(0 <= score <= 1 for score in diagnosis.scores.values())
    assert set(diagnosis.probes_joint) == set(diagnosis.probes_alone) == {"text_a", "text_b"}
    assert diagnosis.regime is not None and diagnosis.regime.num_rows == 40
    assert sum(diagnosis.regime.votes.values()) == pytest.approx(1)
    assert set(diagnosis.regime.explained.missed) == {"text_a", "text_b"}


def test_files(found: tuple[Diagnosis, Path]) -> None:
    diagnosis, folder = found
    assert sorted(path.name for path in folder.iterdir() if path.is_file()) == [
        "diagnosis.json",
        "diagnosis.md",
        "diagnosis.png",
    ]
    assert not list(folder.rglob("*.safetensors"))
    saved = json.loads((folder / "diagnosis.json").read_text())
    assert saved["gradients"]["text_a"]["last"] == pytest.approx(diagnosis.gradients["text_a"].last)
    assert saved["regime"] == diagnosis.regime.name and len(saved["history"]) == 6
    text = (folder / "diagnosis.md").read_text()
    assert all(paragraph in text for paragraph in diagnosis.verdict())
    assert "| their answers added up |" in text and "**Linear probes**" in text
    with Image.open(folder / "diagnosis.png") as picture:
        assert picture.width > 1500 and len(picture.convert("RGB").getcolors(2**24) or []) > 20


@pytest.mark.slow
def test_three_modalities_some_missing_and_quantities(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, number in (("train", 48), ("validation", 24)):
        rows = []
        for i in range(number):
            value = float(rng.normal())
            texts = {f"text_{m}": f"{m} {'low' if value < 0 else 'high'} {i % 3}" for m in "abc"}
            if i % 4 == 0:
                texts["text_a"] = None  # type: ignore[assignment]
            rows.append(json.dumps({**texts, "label": value}))
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows))
    values = tiny_recipe(tmp_path / "out", encoders={f"text_{m}": TINY_ENCODERS["text"] for m in "abc"}, max_steps=3)
    values |= {"dataset_name": str(tmp_path), "problem_type": "regression", "max_train_samples": None}
    diagnosis = diagnose(write(tmp_path, values), output_dir=tmp_path / "found")
    assert diagnosis.metric == "mae" and diagnosis.regime is not None
    assert len(diagnosis.regime.explained.alone) == 3
    assert 0.3 < diagnosis.chance < 3  # the variance
    assert "MAE" in diagnosis.to_markdown()


def test_a_checkpoint_with_a_fusion_of_its_own(tmp_path: Path) -> None:
    save_checkpoint("flava", tmp_path / "flava")
    values = tiny_recipe(tmp_path / "out", model_name_or_path=str(tmp_path / "flava"), max_steps=3)
    values = {key: value for key, value in values.items() if key not in ("encoders", "num_fusion_layers")}
    diagnosis = diagnose(write(tmp_path, values), output_dir=tmp_path / "found")
    assert diagnosis.regime is None and diagnosis.method is None and not diagnosis.probes_joint
    assert "no unimodal runs" in diagnosis.verdict()[0].replace("are ", "")
    assert set(diagnosis.gradients) | set(diagnosis.unmeasured) == {"image", "text"}
    assert {"joint", "image in joint", "text in joint"} <= set(diagnosis.scores)
    json.loads((tmp_path / "found" / "diagnosis.json").read_text())


def test_mistakes(tmp_path: Path) -> None:
    path = write(tmp_path, tiny_recipe(tmp_path / "out"))
    with pytest.raises(ValueError, match="--streaming false"):
        diagnose(path, ["--streaming", "true"])
    with pytest.raises(ValueError, match="one modality only"):
        diagnose(path, ["--encoders", "{image: null}"])


def test_the_length_is_the_recipes_own_unless_it_is_long() -> None:
    recipe = make_recipe(tiny_recipe("out", max_steps=-1, num_train_epochs=3, gradient_accumulation_steps=2))
    assert _own_steps(recipe, 40) == 9  # 5 batches, 3 updates an epoch
    recipe.training.max_steps = 7
    assert _own_steps(recipe, 40) == 7


def test_shuffled_rows() -> None:
    rows = [{"a": i, "b": i} for i in range(20)]
    mixed = list(Shuffled(rows, "a"))
    assert [row["b"] for row in mixed] == list(range(20))
    assert sorted(row["a"] for row in mixed) == list(range(20)) and mixed != rows


# ---- words ----


def with_regime(name: str, joint: float = 0.9, own: float | None = None, votes: float = 1.0) -> Diagnosis:
    late, alone = {"synergy": (0.0, (0.0, 0.0)), "mixed": (0.5, (0.5, 0.0)), "useless": (0.9, (0.9, 0.0))}.get(
        name, (0.9, (0.5, 0.5))
    )
    missed = {"image": 0.8, "text": 0.0 if name == "useless" else 0.7}
    shares = dict(zip(("image", "text"), alone, strict=True))
    regime = Regime(name, Explained(shares, late, joint, missed), {name: votes, "unclear": 1 - votes}, num_rows=100)
    other = regime if own is None else Regime(name, Explained(shares, late, own, missed), {name: 1.0})
    history = [
        {"step": i, "grad_ratio_image": 1 - i / 10, "grad_cosine_image": 0.9, "loss_image": 1.0} for i in range(6)
    ]
    return Diagnosis("r/my.yaml", ["image", "text"], 6, history, regime=regime, own=other)


@pytest.mark.parametrize(
    ("regime", "method", "words"),
    [
        ("redundant", "dgl", "The labels look redundant"),
        ("mixed", "joint", "44% of what can be told only from their combination"),
        ("synergy", "joint", "The labels look synergistic"),
        ("useless", "joint", "text looks useless"),
        ("unclear", None, "no model has learned the task"),
    ],
)
def test_what_to_choose_and_why(regime: str, method: str | None, words: str) -> None:
    diagnosis = with_regime(regime)
    text = " ".join(diagnosis.verdict())
    assert diagnosis.method == method and words in text
    assert "image slightly suppressed" in text or "image suppressed" in text
    assert (f"**Method: `{method}`** (sure)" in text) or method is None


def test_how_sure() -> None:
    assert "(fairly sure)" in " ".join(with_regime("mixed", votes=0.85).verdict())
    assert "not sure: compare" in " ".join(with_regime("mixed", votes=0.6).verdict())


def test_a_fusion_that_has_not_learned_what_a_bilinear_one_has_is_told() -> None:
    text = " ".join(with_regime("synergy", own=0.05).verdict())
    assert "The recipe's own fusion tells only 0.05" in text and "with a bilinear fusion" in text
    assert "bilinear" not in " ".join(with_regime("synergy").verdict())


def test_what_dgl_would_keep() -> None:
    assert "lost something that DGL would keep" in " ".join(with_regime("redundant", own=0.8).verdict())
    assert "lost something" not in " ".join(with_regime("redundant", own=0.95).verdict())


def test_nan_is_null_in_json() -> None:
    assert json.loads(json.dumps(with_regime("mixed").to_dict(), allow_nan=False))["chance"] is None
