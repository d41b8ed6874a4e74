"""The procedures give the gradients they should, the counts are right, and DGL costs what is promised."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_dgl import disentangle
from hf_dgl.analysis.benchmark.benchmark import benchmark, benchmark_recipe, benchmark_shape, sweep
from hf_dgl.analysis.benchmark.picture import plot_sweep
from hf_dgl.analysis.benchmark.procedures import Procedures
from hf_dgl.analysis.benchmark.result import BenchmarkResult, Cost
from hf_dgl.analysis.benchmark.shapes import Shape, build, reshaped, smaller
from hf_dgl.architectures import modalities_of
from hf_dgl.recipe.recipe import make_recipe
from tests.recipes import tiny_recipe
from tests.tiny import tiny_batch, tiny_model

TINY = Shape(
    image_layers=1, text_layers=1, fusion_layers=1, hidden_size=16, batch_size=2, image_size=32, text_length=4
)


def gradients(model: Any) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("modalities", [("image", "text"), ("image", "text", "audio")], ids=len)
@pytest.mark.parametrize("fusion_type", ["cross_attention", "merged_attention", "concat", "gated"])
def test_two_backward_passes_give_the_gradients_of_dgl(fusion_type: str, modalities: tuple[str, ...]) -> None:
    model = tiny_model(modalities, fusion_type=fusion_type).double().train()
    batch = tiny_batch(modalities)
    for name in set(modalities) - {"text"}:
        batch[name] = {key: t.double() if t.is_floating_point() else t for key, t in batch[name].items()}
    alpha = dict(zip(modalities, (0.5, 2.0, 3.0), strict=False))
    with disentangle(model, modalities_of(model), alpha=alpha) as handle:
        procedures = Procedures(handle, batch)
        procedures.dgl()
        dgl = gradients(model)
        procedures.two_backward()
        two_backward = gradients(model)
        procedures.joint()
        joint = gradients(model)
    assert dgl.keys() == two_backward.keys()
    for name, gradient in dgl.items():
        torch.testing.assert_close(gradient, two_backward[name], rtol=1e-10, atol=1e-14)
    encoder = next(name for name in dgl if "encoders" in name)
    assert not torch.allclose(joint[encoder], dgl[encoder])
    model(**batch).loss.backward()
    for name, gradient in gradients(model).items():
        assert torch.equal(gradient, joint[name])


def test_flops_of_matrix_products_are_counted_by_hand() -> None:
    """A concat fusion: only the projections (width 16 to 16) and the classifier come after the encoders."""
    with build(dataclasses.replace(TINY, fusion_type="concat").config(), TINY.batch(), fake=True) as (model, batch):
        result = benchmark(model, batch, steps=0)
    tokens = {"image": 5, "text": 4}
    projection = {name: 2 * 2 * count * 16 * 16 for name, count in tokens.items()}  # 2 rows, 2 operations each
    classifier = 2 * 2 * 32 * 3
    alone = sum(2 * flops for flops in projection.values()) + 2 * 2 * classifier
    # The multimodal loss's gradient of the projections' inputs is not saved: the layer norm before needs it.
    assert result.costs["dgl"].flops == result.costs["joint"].flops + alone
    assert result.costs["floor"].flops == result.costs["dgl"].flops
    weights = sum(projection.values()) + 2 * classifier  # gradients that the paper throws away
    assert result.costs["two_backward"].flops == result.costs["dgl"].flops + weights


def test_fake_and_real_tensors_give_the_same_counts() -> None:
    counted = benchmark_shape(TINY, steps=0, device="cpu")
    measured = benchmark_shape(TINY, steps=2, device="cpu")
    for name, cost in counted.costs.items():
        assert (cost.flops, cost.memory) == (measured.costs[name].flops, measured.costs[name].memory)
        assert cost.seconds == []
        assert len(measured.costs[name].seconds) == (0 if name == "floor" else 2)
    assert counted.ratios("dgl")["seconds"] is None and counted.bookkeeping is None
    assert measured.ratios("joint")["seconds"] == 1.0 and measured.bookkeeping > 0


@pytest.mark.parametrize("dropout", [0.0, 0.1], ids=["fused attention", "written out, as the CPU does with dropout"])
def test_flops_of_attention_are_counted(dropout: float) -> None:
    """Width 16, one layer each: twice the tokens are four times the scores, and all else twice."""
    shapes = [
        Shape(0, 1, 0, "concat", hidden_size=16, batch_size=1, text_length=length, dropout=dropout)
        for length in (64, 128)
    ]
    short, long = (benchmark_shape(shape, steps=0, device="cpu").costs["joint"].flops for shape in shapes)
    matrix_products = 4 if dropout else 5  # of the backward, two more in the forward; the fused kernel recomputes one
    assert long - 2 * short == pytest.approx((2 + matrix_products) * 2 * 2 * 64 * 64 * 16, rel=0.02)


def test_saved_memory_counts_each_storage_once_and_no_parameter() -> None:
    from hf_dgl.analysis.benchmark.memory import memory_of

    layer = torch.nn.Linear(8, 8)
    states = torch.randn(4, 8)

    def step() -> None:
        (layer(states) * layer(states)).sum().backward()  # saves its input twice, and both products

    assert memory_of(layer, step) == 4 * (4 * 8 + 2 * 4 * 8)


@pytest.mark.slow
@pytest.mark.parametrize(("fusion_layers", "bound"), [(2, 1.10), (6, 1.25)])
def test_twelve_layer_encoders_cost_what_is_promised(fusion_layers: int, bound: float) -> None:
    result = benchmark_shape(Shape(fusion_layers=fusion_layers, dropout=0.0), steps=0)
    dgl, paper, floor = (result.ratios(name) for name in ("dgl", "two_backward", "floor"))
    assert dgl["flops"] <= bound
    assert result.above_floor == 0.0
    assert dgl["memory"] <= 1.01 * floor["memory"]
    assert dgl["flops"] < paper["flops"] and dgl["memory"] < paper["memory"]
    if fusion_layers == 2:
        assert dgl["memory"] <= 1.15


def test_the_time_ratio_is_taken_round_by_round() -> None:
    costs = {"joint": Cost(100, 10, [1.0, 10.0, 1.0]), "dgl": Cost(110, 11, [1.1, 11.0, 50.0])}
    result = BenchmarkResult({**costs, "two_backward": Cost(120, 12), "floor": Cost(110, 11)}, None, {})
    assert result.ratios("dgl") == {"flops": 1.1, "seconds": pytest.approx(1.1), "memory": 1.1}
    cells = ["joint", "0.000", "1.000", "1,000.0", "9,000.0", "1.000", "1.000", "0.000", "1.000"]
    assert result.table().rows[0] == cells  # of three rounds the quartiles are the least and the longest
    assert result.table().rows[2][3:7] == ["–"] * 4


def test_evaluation_runs_each_encoder_once() -> None:
    result = benchmark_shape(Shape(hidden_size=64, batch_size=2, dropout=0.0), steps=1, device="cpu")
    assert result.evaluation is not None and 1.0 < result.evaluation < 1.2  # 12 + 12 layers, and a fusion of 2


def test_what_is_saved_is_told_by_part(image_text_model: Any, image_text_batch: dict[str, Any]) -> None:
    result = benchmark(image_text_model, image_text_batch, steps=1)
    joint, dgl, checkpointed = (result.saved[name] for name in ("joint", "dgl", "dgl, checkpointed"))
    assert joint["image"] == dgl["image"] > 0 and joint["text"] == dgl["text"] > 0  # encoders run once
    assert dgl["fusion"] > joint["fusion"]
    assert sum(dgl.values()) == result.costs["dgl"].memory
    assert sum(checkpointed.values()) < 0.5 * sum(dgl.values())
    assert result.first_step is not None and not image_text_model.is_gradient_checkpointing
    assert [row[0] for row in result.saved_table().rows] == list(result.saved)


def test_the_model_is_left_as_it_was(image_text_model: Any, image_text_batch: dict[str, Any]) -> None:
    before = {name: value.clone() for name, value in image_text_model.state_dict().items()}
    benchmark(image_text_model, image_text_batch, steps=1)
    assert not image_text_model.training
    assert all(p.grad is None and p.requires_grad for p in image_text_model.parameters())
    assert not image_text_model._forward_hooks and "forward" not in image_text_model.__dict__
    assert all(torch.equal(value, before[name]) for name, value in image_text_model.state_dict().items())


def test_bf16_autocast(image_text_model: Any, image_text_batch: dict[str, Any]) -> None:
    full = benchmark(image_text_model, image_text_batch, steps=0)
    half = benchmark(image_text_model, image_text_batch, steps=0, autocast=torch.bfloat16)
    assert half.costs["dgl"].flops == full.costs["dgl"].flops
    assert half.description["autocast"] == "bfloat16"


@pytest.mark.slow
def test_sweep_and_plot(tmp_path: Any) -> None:
    shape = dataclasses.replace(TINY, audio_layers=1, audio_length=16)
    config = shape.config()
    points = sweep(config, shape.batch(), depths=(2,))
    assert [(point["num_modalities"], point["fusion_layers"]) for point in points] == [(2, 2), (3, 2)]
    assert config.modalities == ["image", "text", "audio"] and config.num_fusion_layers == 1
    assert all(1 < point["ratios"]["dgl"]["flops"] < point["ratios"]["two_backward"]["flops"] for point in points)
    plot_sweep(points, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_pooled_fusions_are_swept_once() -> None:
    shape = dataclasses.replace(TINY, fusion_type="sum")
    assert [point["fusion_layers"] for point in sweep(shape.config(), shape.batch())] == [0]


def test_recipe_with_another_shape(tmp_path: Any) -> None:
    recipe = reshaped(
        make_recipe(tiny_recipe(tmp_path)),
        {"image_layers": 2, "hidden_size": 32, "fusion_layers": 3, "batch_size": 5, "image_size": 32, "dropout": 0.0},
    )
    image, text = recipe.model.encoders["image"], recipe.model.encoders["text"]  # type: ignore[index]
    assert (image["num_hidden_layers"], image["hidden_size"], image["image_size"]) == (2, 32, 32)
    assert (text["num_hidden_layers"], text["hidden_size"], text["intermediate_size"]) == (1, 32, 128)
    assert (recipe.model.num_fusion_layers, recipe.model.fusion_dropout) == (3, 0.0)
    result = benchmark_recipe(recipe, steps=0, device="cpu", depths=(1,))
    assert result.description["batch_size"] == 5
    assert result.above_floor == 0.0
    assert len(result.sweep) == 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"text_length": 8}, "--text_length: the recipe's data"),
        ({"audio_layers": 2}, "--audio_layers: the recipe has the encoders \\['image', 'text'\\]"),
    ],
)
def test_sizes_that_a_recipe_cannot_have(wrong: dict[str, int], message: str, tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=message):
        reshaped(make_recipe(tiny_recipe(tmp_path)), wrong)


def test_a_checkpoint_keeps_its_shape(tmp_path: Any) -> None:
    values = tiny_recipe(tmp_path)
    values["encoders"] = {**values["encoders"], "text": "some/checkpoint"}
    with pytest.raises(ValueError, match="text encoder 'some/checkpoint' is a checkpoint"):
        reshaped(make_recipe(values), {"hidden_size": 32})
    assert reshaped(make_recipe(values), {"image_layers": 3}).model.encoders["image"]["num_hidden_layers"] == 3  # type: ignore[index]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"hidden_size": 100, "num_heads": 3}, "hidden_size=100 and num_heads=3"),
        ({"image_size": 100}, "image_size=100, expected a multiple of 16"),
    ],
)
def test_shapes_that_do_not_divide(wrong: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shape(**wrong)


def test_what_cannot_be_compared(image_text_model: Any, image_text_batch: dict[str, Any]) -> None:
    unlabelled = {name: value for name, value in image_text_batch.items() if name != "labels"}
    with pytest.raises(ValueError, match="without 'labels'"):
        benchmark(image_text_model, unlabelled)
    encoders = {name: f"cross_modal.encoders.{name}" for name in ("image", "text")}
    with disentangle(image_text_model, encoders) as handle, pytest.raises(ValueError, match="absent='omit'"):
        Procedures(handle, image_text_batch)


def test_smaller_leaves_its_arguments_alone() -> None:
    shape = dataclasses.replace(TINY, audio_layers=1, audio_length=16)
    config, batch = shape.config(), shape.batch()
    less, part = smaller(config, batch, ["text", "audio"], 5)
    assert (less.modalities, list(less.encoders), less.num_fusion_layers) == (["text", "audio"], ["text", "audio"], 5)
    assert sorted(part) == ["audio", "labels", "text"]
    assert config.num_fusion_layers == 1 and len(config.encoders) == 3
