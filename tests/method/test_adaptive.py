from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from hf_dgl import DGLTrainer, DGLTrainingArguments
from hf_dgl.architectures.attach import disentangle
from hf_dgl.method.adaptive import adapt, own_parts
from hf_dgl.method.chance import ChanceLevel
from hf_dgl.method.explained import LATE_FUSION, Explained
from hf_dgl.method.methods import METHODS
from hf_dgl.method.passes import MULTIMODAL
from tests.oracle import Concat, Interleaved, gradients, make_toy, max_difference, toy_batch
from tests.tiny import tiny_batch, tiny_model

CLASSES = 3


def chance_of(problem_type: str, batches: list[torch.Tensor], num_labels: int = CLASSES) -> float:
    chance = ChanceLevel(problem_type, num_labels)
    for labels in batches:
        chance.update(chance.statistics(labels))
    return float(chance.value())


def test_chance_level_of_classes_is_their_entropy():
    labels = torch.tensor([0, 0, 1, 2, 2, 2, -100])  # -100 does not count
    assert chance_of("single_label_classification", [labels[:3], labels[3:]]) == pytest.approx(entropy([2, 1, 3]))


def test_chance_level_of_label_sets_is_the_best_constants_loss():
    labels = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 0], [1, 1, 0]])
    expected = np.mean([entropy([0.25, 0.75]), entropy([0.25, 0.75]), 0.0])
    assert chance_of("multi_label_classification", [labels[:1], labels[1:]]) == pytest.approx(expected)


def test_chance_level_of_quantities_is_their_variance():
    labels = torch.tensor([1.0, 2.0, 4.0, 9.0])
    assert chance_of("regression", [labels[:2], labels[2:]], 1) == pytest.approx(labels.var(unbiased=False))


def logits_with(loss: float, labels: torch.Tensor, classes: int = 4) -> torch.Tensor:
    """Predictions of which each row has this cross-entropy: the other classes share what is left."""
    of_the_true = math.exp(-loss)
    probabilities = torch.full((len(labels), classes), (1 - of_the_true) / (classes - 1), dtype=torch.float64)
    return probabilities.scatter(1, labels.clamp(min=0)[:, None], of_the_true).log()


def explained_after(losses: dict[str, float], labels: torch.Tensor | None = None) -> Explained:
    explained = Explained(["image", "text"], ChanceLevel("single_label_classification", 4))
    labels = torch.arange(4) if labels is None else labels  # chance level: log 4
    explained.count({name: logits_with(loss, labels) for name, loss in losses.items()}, labels)
    explained.step()
    return explained


def test_shares():
    explained = explained_after({MULTIMODAL: 0.0, "image": math.log(4) / 2, "text": 5.0})
    shares = {name: float(share) for name, share in explained.shares().items()}
    later = dict.fromkeys((LATE_FUSION, "late_fusion_image", "late_fusion_text"), 0.0)  # from the second step on
    expected = {MULTIMODAL: 1.0, "image": 0.5, "text": 0.0, **later}  # worse than chance explains nothing
    assert shares == pytest.approx(expected)


def test_a_step_without_a_modality_leaves_its_share_alone():
    labels = torch.arange(4)
    explained = explained_after({MULTIMODAL: 0.1, "image": 0.2})
    assert float(explained.shares()["text"]) == 0 and set(explained.known()) == {MULTIMODAL, "image"}
    explained.count({MULTIMODAL: logits_with(0.1, labels), "text": logits_with(0.0, labels)}, labels)
    explained.step()
    shares = explained.shares()
    assert float(shares["image"]) == pytest.approx(1 - 0.2 / math.log(4))
    assert float(shares["text"]) == 1


@pytest.mark.parametrize("cut", [[8], [1] * 8, [5, 3], [0, 8]])
def test_how_a_batch_is_cut_does_not_matter(cut):
    """Rows without label or without the modality do not count, wherever they are."""
    torch.manual_seed(0)
    logits = {name: torch.randn(8, 4) for name in (MULTIMODAL, "image", "text")}
    labels = torch.tensor([0, 3, 2, -100, 1, 0, 0, 2])
    has_image = torch.tensor([True, False, True, True, False, False, True, True])
    explained = Explained(["image", "text"], ChanceLevel("single_label_classification", 4))
    for rows in torch.arange(8).split(cut):
        explained.count({n: each[rows] for n, each in logits.items()}, labels[rows], {"image": has_image[rows]})
    explained.step()
    counted = (labels != -100) & has_image
    expected = torch.nn.functional.cross_entropy(logits["image"][counted].double(), labels[counted])
    assert explained.state_dict()["running"][1] == pytest.approx(float(expected), rel=1e-12)
    assert explained.state_dict()["sums"][0] == 7
    explained.count(logits, labels, {"image": has_image})  # answers are added up, now that labels are known
    explained.step()
    whole = Explained(["image", "text"], ChanceLevel("single_label_classification", 4))
    for _ in range(2):
        whole.count(logits, labels, {"image": has_image})
        whole.step()
    for key in ("running", "sums"):
        assert explained.state_dict()[key] == pytest.approx(whole.state_dict()[key], rel=1e-12)
    for key, value in whole.state_dict()[LATE_FUSION].items():
        assert np.allclose(explained.state_dict()[LATE_FUSION][key], value, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("problem_type", "logits", "labels", "message"),
    [
        ("single_label_classification", (4, 3), torch.zeros(4), "class ids"),
        ("single_label_classification", (4, 2), torch.zeros(4).long(), "logits of 3 labels"),
        ("multi_label_classification", (4, 3), torch.zeros(4), "as many as logits"),
        ("single_label_classification", (4, 5, 3), torch.zeros(4).long(), "logits of 3 labels"),
    ],
)
def test_labels_that_do_not_fit_the_problem_type_are_refused(problem_type, logits, labels, message):
    explained = Explained(["image", "text"], ChanceLevel(problem_type, 3))
    with pytest.raises(ValueError, match=f"What 'multimodal' explains cannot be measured: .*{message}"):
        explained.count({MULTIMODAL: torch.zeros(logits)}, labels)


@pytest.mark.parametrize(
    ("together", "added_up", "image", "text", "parts"),
    [
        (0.9, 0.9, 0.7, 0.4, (0.75 / 0.8, 0.45 / 0.5)),  # redundant
        (0.6, 0.7, 0.5, 0.3, (0.55 / 0.6, 0.35 / 0.4)),  # adding up tells more: the fusion is behind
        (0.95, 0.0, 0.0, 0.0, (0.05 / 1.05, 0.05 / 1.05)),  # synergy
        (0.9, 0.4, 0.4, 0.0, (0.45 / 1.0, 0.05 / 0.6)),  # mixed
        (0.9, 0.9, 0.9, 0.0, (0.95 / 1.0, 0.5)),  # the text tells nothing
        (0.0, 0.0, 0.0, 0.0, (0.5, 0.5)),  # nothing is known yet
    ],
)
def test_the_parts_by_hand(together, added_up, image, text, parts):
    shares = {MULTIMODAL: together, LATE_FUSION: added_up, "late_fusion_image": image, "late_fusion_text": text}
    found = own_parts({name: torch.tensor(share) for name, share in shares.items()}, ["image", "text"])
    assert [float(found[name]) for name in ("image", "text")] == pytest.approx(parts)


def test_weights_and_shares_are_the_users_times_the_parts():
    explained = explained_after({MULTIMODAL: 0.2, "image": 0.4, "text": 0.7})
    handle = disentangle(make_toy(Concat), make_toy(Concat).declared(), multimodal_to_encoders=1.0)
    adapt(handle, explained, {"image": 2.0, "text": 0.5}, {"image": 1.0, "text": 0.5})
    parts = {name: float(part) for name, part in own_parts(explained.shares(), ["image", "text"]).items()}
    found = {name: (float(handle.alpha[name]), float(handle.multimodal_to_encoders[name])) for name in parts}
    assert found["image"] == pytest.approx((2 * parts["image"], 1 - parts["image"]))
    assert found["text"] == pytest.approx((0.5 * parts["text"], 0.5 * (1 - parts["text"])))


@pytest.mark.parametrize("toy", [Concat, Interleaved])
def test_a_weight_on_the_device_gives_the_gradients_of_a_number(toy):
    found = []
    for alpha, share in ((0.7, 0.3), (torch.tensor(0.7, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64))):
        model = make_toy(toy)
        with disentangle(model, model.declared(), multimodal_to_encoders=1.0) as handle:
            handle.alpha = {"image": alpha, "text": alpha}
            handle.multimodal_to_encoders = {"image": share, "text": share}
            model(**toy_batch(model))["loss"].backward()
            assert "alpha 0.7, share 0.3" in handle.explain()
            assert len(handle.passes) == (3 if all(cut.reuse for cut in handle.cuts.values()) else 4)
        found.append(gradients(model))
    assert max_difference(*found) == 0


def test_the_state_goes_on():
    explained = explained_after({MULTIMODAL: 0.2, "image": 0.4})
    other = Explained(["image", "text"], ChanceLevel("single_label_classification", 4))
    other.load_state_dict(explained.state_dict())
    for one in (explained, other):
        labels = torch.tensor([0, 0, 1, 3])
        one.count({name: logits_with(0.3, labels) for name in (MULTIMODAL, "image", "text")}, labels)
        one.step()
    assert {k: float(v) for k, v in explained.shares().items()} == {k: float(v) for k, v in other.shares().items()}


def test_the_state_of_a_checkpoint_from_before_answers_were_added_up_goes_on():
    explained = explained_after({MULTIMODAL: 0.2, "image": 0.4})
    state = explained.state_dict()
    old = {"running": state["running"][:3], "sums": state["sums"]}
    other = Explained(["image", "text"], ChanceLevel("single_label_classification", 4))
    other.load_state_dict(old)
    assert other.known() == explained.known()


# ---- in the Trainer ----


def logged_by(tmp_path, method: str, labels) -> tuple[list[dict], list[str]]:
    """What a short run logs, and its warnings; the labels are drawn by `labels(rows)`."""
    model = tiny_model(("image", "text"))
    model.config.problem_type = "single_label_classification"
    batch = tiny_batch(("image", "text"), 64)
    batch["labels"] = labels(64)
    rows = [
        {key: value[row] if key == "labels" else {k: v[row] for k, v in value.items()} for key, value in batch.items()}
        for row in range(64)
    ]
    arguments = DGLTrainingArguments(
        str(tmp_path), method=method, use_cpu=True, report_to=[], disable_tqdm=True, max_steps=120, logging_steps=40,
        per_device_train_batch_size=16, learning_rate=1e-5, save_strategy="no",
    )  # fmt: skip
    warnings: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("hf_dgl.training.callbacks")
    logger.addHandler(handler)
    try:
        trainer = DGLTrainer(model, arguments, torch.utils.data.default_collate, rows)
        trainer.train()
    finally:
        logger.removeHandler(handler)
    return [entry for entry in trainer.state.log_history if "loss" in entry], warnings


def test_a_starved_encoder_is_told_once(tmp_path):
    logs, warnings = logged_by(tmp_path, "dgl", lambda rows: torch.randint(3, (rows,)))
    assert logs[-1]["explained_image"] < 0.02
    assert [warning.split(" alone")[0] for warning in warnings] == [
        "After 120 steps, 'image'",
        "After 120 steps, 'text'",
    ]


def test_adaptive_weights_are_logged_and_an_encoder_that_gets_the_multimodal_gradient_is_not_starved(tmp_path):
    logs, warnings = logged_by(tmp_path, "adaptive_dgl", lambda rows: torch.randint(3, (rows,)))
    assert {"alpha_image", "alpha_text", "explained_multimodal"} <= set(logs[-1])
    assert not warnings


def test_adaptive_dgl_needs_a_chance_level(tmp_path):
    model = tiny_model(("image", "text"))
    model.config.problem_type = None
    batch = tiny_batch(("image", "text"), 4)
    trainer = DGLTrainer(model, DGLTrainingArguments(str(tmp_path), method="adaptive_dgl", use_cpu=True))
    with pytest.raises(ValueError, match="set `model.config.problem_type`"):
        trainer.compute_loss(model.train(), batch)


# ---- what it is for ----


def accuracy(method: str, label_of, seed: int = 0) -> float:
    """Test accuracy on a task whose label is `label_of(class of image, class of text)`, two classes each."""
    torch.manual_seed(seed)
    patterns = torch.randn(2, 2, 5)
    model = Concat()
    model.head = torch.nn.Sequential(torch.nn.Linear(12, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    chosen = METHODS[method]
    handle = disentangle(
        model,
        model.declared(),
        alpha=0.0 if chosen.alpha == 0 else 1.0,
        multimodal_to_encoders=chosen.multimodal_to_encoders,
        unimodal_to_fusion=chosen.unimodal_to_fusion,
    )
    explained = Explained(["image", "text"], ChanceLevel("single_label_classification", 2))

    def draw(rows: int) -> dict[str, torch.Tensor]:
        classes = torch.randint(2, (2, rows))
        inputs = [patterns[m][classes[m]].unsqueeze(1) + 0.3 * torch.randn(rows, 4, 5) for m in range(2)]
        return {"image": inputs[0], "text": inputs[1], "labels": label_of(*classes)}

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(250):
        batch = draw(64)
        if chosen.adaptive:
            adapt(handle, explained, {"image": 1.0, "text": 1.0})
        output = model(**batch)
        output["loss"].backward()
        if "losses" in output:
            alone = {name: one["logits"] for name, one in output["unimodal"].items()}
            explained.count({MULTIMODAL: output["logits"], **alone}, batch["labels"])
            explained.step()
        optimizer.step()
        optimizer.zero_grad()
    handle.remove()
    model.eval()
    batch = draw(1000)
    with torch.no_grad():
        return float((model(**batch)["logits"].argmax(-1) == batch["labels"]).float().mean())


def test_where_only_both_together_tell_the_label_dgl_starves_and_adaptive_dgl_is_joint():
    parity = lambda image, text: image ^ text  # noqa: E731
    assert accuracy("dgl", parity) < 0.85
    assert accuracy("joint", parity) > 0.95
    assert accuracy("adaptive_dgl", parity) > 0.95


@pytest.mark.parametrize("problem_type", ["regression", "multi_label_classification"])
def test_the_weights_follow_other_losses(problem_type):
    """Two modalities that repeat one another open the gate, whatever the loss."""
    torch.manual_seed(0)
    multi = problem_type.startswith("multi")
    labels = torch.rand(64, 2).round() if multi else torch.randn(64, 2)
    logits = (2 * labels - 1) * 1.5 if multi else labels * 0.5
    explained = Explained(["image", "text"], ChanceLevel(problem_type, 2))
    for _ in range(60):
        explained.count(dict.fromkeys((MULTIMODAL, "image", "text"), logits), labels)
        explained.step()
    shares = explained.shares()
    assert all(0.5 < float(shares[name]) < 0.9 for name in (MULTIMODAL, "image", "text"))
    handle = disentangle(make_toy(Concat), make_toy(Concat).declared(), multimodal_to_encoders=1.0)
    adapt(handle, explained, {"image": 1.0, "text": 1.0})
    assert all(float(alpha) > 0.75 for alpha in handle.alpha.values())
