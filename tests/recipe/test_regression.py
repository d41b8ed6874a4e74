"""Regression on large numbers and on several quantities: standardised inside, in the labels' units outside."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hf_dgl
from hf_dgl.cli import main
from hf_dgl.data.constant import best_constant, no_better_than_constant
from hf_dgl.models import CrossModalForSequenceClassification
from tests.recipes import TINY_ENCODERS
from tests.tiny import tiny_batch, tiny_model

MEAN, STD = [51_000.0, 0.02], [800.0, 0.001]


def test_loss_is_that_of_standardised_labels_and_logits_are_in_their_units() -> None:
    plain = tiny_model(num_labels=2, problem_type="regression").double()
    scaled = tiny_model(num_labels=2, problem_type="regression", label_mean=MEAN, label_std=STD).double()
    batch = {
        name: {k: v.double() if v.is_floating_point() else v for k, v in part.items()}
        for name, part in tiny_batch(labels=False).items()
    }
    z = torch.randn(4, 2, dtype=torch.float64)
    mean, std = torch.tensor([MEAN, STD], dtype=torch.float64)
    expected, found = plain(**batch, labels=z), scaled(**batch, labels=z * std + mean)
    torch.testing.assert_close(found.loss, expected.loss)
    torch.testing.assert_close(found.logits, expected.logits * std + mean)
    for loss, model in ((expected.loss, plain), (found.loss, scaled)):
        loss.backward()
        assert all(p.grad is not None for p in model.classifier.parameters())
    torch.testing.assert_close(scaled.classifier.weight.grad, plain.classifier.weight.grad)


def test_the_scale_is_saved_with_the_model_and_old_checkpoints_have_none(tmp_path: Path) -> None:
    model = tiny_model(num_labels=2, problem_type="regression", label_mean=MEAN, label_std=STD)
    model.save_pretrained(tmp_path)
    batch = tiny_batch(labels=False)
    again = CrossModalForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["label_mean"], config["label_std"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    old = CrossModalForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(
        old(**batch).logits, tiny_model(num_labels=2, problem_type="regression")(**batch).logits
    )


@pytest.mark.parametrize("mean, std", [([1.0], [1.0]), (MEAN, None), (MEAN, [0.0, 1.0])])
def test_a_scale_that_does_not_fit_is_refused(mean: Any, std: Any) -> None:
    with pytest.raises(ValueError, match="label_mean=.*a number for each of the 2 outputs"):
        tiny_model(num_labels=2, problem_type="regression", label_mean=mean, label_std=std)


def prices(folder: Path) -> Path:
    """What the words say of a price, exactly; two targets on scales that are 10 millions apart."""
    rng = np.random.default_rng(0)
    lines = ["text,price,share"]
    for _ in range(160):
        words = rng.choice(["small", "big", "loud", "quiet"], 2)
        z = {"small": -1, "big": 1, "loud": 0.5, "quiet": -0.5}
        value = sum(z[word] for word in words)
        lines.append(f"{' '.join(words)},{51_000 + round(800 * value)},{0.02 + 0.001 * value:.5f}")
    (folder / "prices.csv").write_text("\n".join(lines))
    return folder / "prices.csv"


def train(folder: Path, *words: str) -> dict[str, Any]:
    encoder = {**TINY_ENCODERS["text"], "hidden_size": 32, "num_hidden_layers": 1}
    common = ["--data", str(prices(folder)), "--encoders", f"text={json.dumps(encoder)}", "--text", "text"]
    common += ["--output_dir", str(folder / "out"), "--use_cpu", "--fusion_type", "concat", "--save_strategy", "no"]
    common += ["--learning_rate", "5e-3", "--per_device_train_batch_size", "16", "--report_to", "none", *words]
    assert main(["train", *common]) == 0
    return json.loads((folder / "out" / "metrics.json").read_text())


@pytest.mark.slow
def test_prices_are_learned_and_every_output_is_in_their_units(tmp_path: Path, caplog: Any) -> None:
    logging.getLogger("hf_dgl").propagate = True
    words = ["--label", "price", "--problem_type", "regression", "--num_train_epochs", "12"]
    metrics = train(tmp_path, *words)
    assert metrics["test"]["mae"] < 200, "a constant has about 700"
    assert "no better than" not in caplog.text
    answer = hf_dgl.pipeline(str(tmp_path / "out"))(text="big big")
    assert 52_000 < answer["score"] < 53_200 and 52_000 < answer["modalities"]["text"]["score"] < 53_200


@pytest.mark.slow
def test_several_targets_by_name(tmp_path: Path) -> None:
    train(tmp_path, "--label", "price", "share", "--num_train_epochs", "12")
    scores = hf_dgl.pipeline(str(tmp_path / "out"))(text="big big")["scores"]
    assert 52_000 < scores["price"] < 53_200 and 0.0213 < scores["share"] < 0.0227


def test_a_run_that_learned_nothing_says_so(tmp_path: Path, caplog: Any) -> None:
    logging.getLogger("hf_dgl").propagate = True
    train(tmp_path, "--label", "price", "--problem_type", "regression", "--max_steps", "1", "--learning_rate", "1e-9")
    assert "test: mae" in caplog.text and "no better than the" in caplog.text and "hf-dgl data" in caplog.text


@pytest.mark.parametrize(
    "problem_type, train, labels, expected",
    [
        ("single_label_classification", [0, 0, 1], [0, 1, 1, 1], ("accuracy", 0.25)),
        ("multi_label_classification", [[0, 1]], [[1, 1, 0], [0, 1, 0]], ("map", 0.75)),
        ("regression", [0.0, 1.0, 50.0], [1.0, 3.0], ("mae", 1.0)),
        ("regression", [[0.0, 1.0]], [[1.0, 3.0]], ("mae", 1.5)),
    ],
)
def test_the_best_constant(problem_type: str, train: Any, labels: Any, expected: tuple[str, float]) -> None:
    assert best_constant(train, labels, problem_type) == expected
    from datasets import Dataset

    rows, known = Dataset.from_dict({"label": labels}), Dataset.from_dict({"label": train})
    name, score = expected
    better = score - 0.1 if name == "mae" else score + 0.1
    assert no_better_than_constant({name: score}, known, rows, problem_type) is not None
    assert no_better_than_constant({name: better}, known, rows, problem_type) is None


def test_what_is_explained_of_several_targets_counts_each_alike() -> None:
    """One target is told perfectly, the other, on a scale 100,000 times smaller, not at all."""
    from hf_dgl.method.chance import ChanceLevel
    from hf_dgl.method.explained import Explained

    z = torch.randn(4000, 2, generator=torch.manual_seed(0), dtype=torch.float64)
    labels = z * torch.tensor(STD, dtype=torch.float64) + torch.tensor(MEAN, dtype=torch.float64)
    logits = torch.stack([labels[:, 0], labels[:, 1].mean().expand(4000)], dim=1)
    explained = Explained(["text"], ChanceLevel("regression", 2, (MEAN, STD)))
    explained.count({"multimodal": labels, "text": logits}, labels)
    explained.step()
    shares = explained.shares()
    assert float(shares["multimodal"]) == 1 and abs(float(shares["text"]) - 0.5) < 0.02
