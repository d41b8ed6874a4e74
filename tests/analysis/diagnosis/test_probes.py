"""Linear probes: of the right features, fitted and scored on the right rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from hf_dgl.analysis.probes import evaluate_probes, linear_probes, pooled_features
from hf_dgl.cli import main
from hf_dgl.recipe.finetune import finetune
from hf_dgl.recipe.recipe import make_recipe
from tests.recipes import tiny_recipe
from tests.tiny import tiny_batch, tiny_model


def rows(number: int, problem_type: str, missing: bool = False) -> list[dict[str, Any]]:
    """Of which the image is brighter the larger its label, and the text says nothing."""
    batch = tiny_batch(("image", "text"), number)
    kinds = np.random.default_rng(number).permutation(np.arange(number) % 3)
    batch["image"]["pixel_values"] += 3 * torch.from_numpy(kinds).float()[:, None, None, None]
    labels = {
        "single_label_classification": torch.from_numpy(kinds),
        "multi_label_classification": torch.from_numpy(np.stack([kinds == 1, kinds > 0, kinds < 9], 1)).float(),
        "regression": torch.from_numpy(kinds).float(),
    }
    batch["labels"] = labels[problem_type]
    if missing:
        batch["image"]["present"] = torch.from_numpy(kinds != 1)
    return [
        {k: v[i] if k == "labels" else {n: t[i] for n, t in v.items()} for k, v in batch.items()}
        for i in range(number)
    ]


def model_for(problem_type: str) -> Any:
    return tiny_model(
        ("image", "text"), problem_type=problem_type, num_labels=1 if problem_type == "regression" else 3
    )


@pytest.mark.parametrize("problem_type", ["single_label_classification", "multi_label_classification", "regression"])
def test_what_the_features_tell_is_found(problem_type: str) -> None:
    data, collate = (rows(90, problem_type), rows(60, problem_type)), torch.utils.data.default_collate
    found = linear_probes(model_for(problem_type), collate, *data)
    assert list(found) == ["image", "text"]
    if problem_type == "regression":
        assert found["image"] < 0.45 < found["text"]  # mean absolute error
    else:
        assert found["image"] > 0.8 > found["text"] + 0.05


def test_by_hand() -> None:
    model, collate = model_for("single_label_classification"), torch.utils.data.default_collate
    train, test = rows(45, "single_label_classification"), rows(31, "single_label_classification")
    (x, y), (x_test, y_test) = (pooled_features(model, collate, data, batch_size=7) for data in (train, test))
    batch = collate(test)
    hidden = model.cross_modal.encoders["text"](**batch["text"]).last_hidden_state
    mask = batch["text"]["attention_mask"].unsqueeze(-1)
    mean = ((hidden * mask).sum(1) / mask.sum(1)).detach().numpy()
    np.testing.assert_allclose(x_test["text"], mean, atol=1e-5)
    scaler = StandardScaler().fit(x["text"])
    probe = LogisticRegression(max_iter=2000).fit(scaler.transform(x["text"]), y)
    expected = probe.score(scaler.transform(x_test["text"]), y_test)
    assert linear_probes(model, collate, train, test)["text"] == expected


def test_rows_that_lack_a_modality_are_left_out_for_it() -> None:
    model, collate = model_for("single_label_classification"), torch.utils.data.default_collate
    train = rows(60, "single_label_classification", missing=True)
    found, labels = pooled_features(model, collate, train)
    assert np.isnan(found["image"]).all(axis=1).tolist() == (labels == 1).tolist()
    assert np.isfinite(found["text"]).all()
    assert linear_probes(model, collate, train, train)["image"] == 1.0  # two classes are left, easily told apart
    nothing = [row for row in train if row["labels"] == 1]
    with pytest.raises(ValueError, match="no row has both"):
        linear_probes(model, collate, train, nothing)


def test_a_class_without_variation_and_few_rows() -> None:
    model, collate = model_for("single_label_classification"), torch.utils.data.default_collate
    one = [row for row in rows(30, "single_label_classification") if row["labels"] == 0]
    test = rows(30, "single_label_classification")
    assert linear_probes(model, collate, one, test)["image"] == pytest.approx(1 / 3)
    many = linear_probes(model, collate, rows(90, "single_label_classification"), test, max_rows=30)
    assert 0 <= many["text"] <= 1


def test_other_models_are_refused() -> None:
    with pytest.raises(ValueError, match="Got Linear: linear probes read the encoders"):
        linear_probes(torch.nn.Linear(1, 1), None, [], [])


def test_evaluate_adds_them(tmp_path: Path, capsys: Any) -> None:
    """Also of a model that has one modality only, as `hf-dgl compare --methods unimodal` trains them."""
    values = tiny_recipe(tmp_path / "out")
    finetune(make_recipe(values))
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "out"), "--probes"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert set(printed["probes"]) == {"image", "text"} and all(0 <= p <= 1 for p in printed["probes"].values())
    values |= {"encoders": {"text": values["encoders"]["text"]}, "output_dir": str(tmp_path / "alone")}
    finetune(make_recipe(values))
    found = evaluate_probes(tmp_path / "alone", make_recipe(values), "validation")
    assert list(found["probes"]) == ["text"]
