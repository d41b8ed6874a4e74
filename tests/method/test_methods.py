"""Methods agree with their definitions: `joint`, and DGL with nothing cut, are a plain `Trainer`; `unimodal` is one
encoder."""

from __future__ import annotations

import pytest
import yaml
from transformers import Trainer

from hf_dgl.analysis.comparison import run as module
from hf_dgl.analysis.comparison.plan import plan
from hf_dgl.method.methods import ALL_METHODS
from hf_dgl.recipe.finetune import evaluate, finetune
from hf_dgl.recipe.recipe import build_parser, load_recipe, make_recipe
from hf_dgl.recipe.unimodal import with_one_modality
from hf_dgl.training.trainer import DGLTrainer
from tests.recipes import tiny_recipe
from tests.tiers import slow_but
from tests.tiny import tiny_model
from tests.training.test_trainer import SINGLE, arguments, make, same, weights

# ---- what is plain training is bit-identical to a plain Trainer ----

PLAIN = {
    "joint": {"method": "joint"},
    "dgl with nothing cut": {"method": "dgl", "alpha": 0.0, "multimodal_to_encoders": 1.0, "clip_by_group": False},
}
ARGUMENTS = {
    "clipping and warm-up": {
        "max_grad_norm": 0.1,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 2,
        "weight_decay": 0.1,
    },
    "accumulation, no clipping": {
        "gradient_accumulation_steps": 3,
        "per_device_train_batch_size": 4,
        "max_grad_norm": 0.0,
        "optim": "sgd",
    },
}


@pytest.mark.parametrize("name", slow_but("clipping and warm-up", of=ARGUMENTS))
def test_bit_identical_to_a_plain_trainer(tmp_path, name):
    kwargs = ARGUMENTS[name]
    plain = make(tmp_path, trainer=Trainer, max_steps=5, **kwargs)
    plain.train()
    for settings in PLAIN.values():
        trainer = make(tmp_path, max_steps=5, **kwargs, **settings)
        trainer.train()
        same(weights(plain), weights(trainer))
        for ours, theirs in zip(trainer.state.log_history, plain.state.log_history, strict=True):
            compared = set(theirs) - {"train_runtime", "train_samples_per_second", "train_steps_per_second"}
            assert {key: ours[key] for key in compared} == {key: theirs[key] for key in compared}


def test_unimodal_is_a_plain_trainer_on_a_model_with_one_encoder(tmp_path):
    found = []
    for trainer_class, settings in [(Trainer, {}), (DGLTrainer, {"method": "unimodal", "modality": "image"})]:
        trainer = make(tmp_path, modalities=("image",), trainer=trainer_class, **settings)
        trainer.train()
        found.append(weights(trainer))
    same(*found)


# ---- unimodal ----


def test_unimodal_of_a_recipe_is_the_model_with_that_encoder_only(tmp_path):
    recipe = make_recipe(tiny_recipe(tmp_path / "out", method="unimodal", modality="text", freeze=["image"]))
    assert recipe.training.freeze is None
    result = finetune(recipe)
    assert result.model.config.modalities == ["text"]
    assert not [name for name in result.model.state_dict() if "image" in name]
    # The same as a recipe that never named another encoder, trained by plain joint training.
    values = tiny_recipe(tmp_path / "plain", method="joint")
    values["encoders"] = {"text": values["encoders"]["text"]}
    plain = finetune(make_recipe(values))
    same(plain.model.state_dict(), result.model.state_dict())
    assert result.metrics["test"]["accuracy"] == plain.metrics["test"]["accuracy"]
    again = load_recipe(tmp_path / "out" / "recipe.yaml")
    assert again.training.modality == "text" and list(again.model.encoders) == ["text"]
    assert evaluate(tmp_path / "out", recipe)["accuracy"] == result.metrics["test"]["accuracy"]


def test_comparing_runs_what_train_runs(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(tmp_path / "out", alpha={"image": 1.0, "text": 2.0})))
    methods = ["joint", "ogm_ge", "g_blending", "unimodal"]
    runs = {(run.method, run.modality): run for run in plan(path, methods, [0], tmp_path / "runs")}
    assert runs["unimodal", "image"].words[:4] == ("--method", "unimodal", "--modality", "image")
    typed = load_recipe(path, ["--method", "unimodal", "--modality", "image"])
    planned = load_recipe(path, runs["unimodal", "image"].words)
    differ = {key for key in planned.values if planned.values[key] != typed.values.get(key)}
    assert differ == {"seed", "output_dir"}


def test_swept_keys_go_to_the_methods_that_have_them(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(tmp_path / "out", multimodal_to_encoders=0.5)))
    sweeps = {"alpha": ["1", "2"], "ogm_alpha": ["0.1", "0.8"], "multimodal_to_encoders": ["0", "0.3"]}
    of: dict[str, set] = {}
    for run in plan(path, list(ALL_METHODS), [0], tmp_path / "runs", sweeps=sweeps):
        of.setdefault(run.method, set()).update(key for key, _ in run.settings)
    assert of["joint"] == of["g_blending"] == of["unimodal"] == set()
    assert of["ogm_ge"] == {"ogm_alpha"}
    assert of["dgl"] == {"alpha", "multimodal_to_encoders"}


@pytest.mark.slow
def test_compared_runs_train(tmp_path, monkeypatch):
    """Every planned run can be trained; in this process, since a new one takes longer than the training."""
    monkeypatch.setattr(module, "_call", lambda words, *_: finetune(load_recipe(words[1], words[2:])))
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe(tmp_path / "out", eval_strategy="steps", eval_steps=1)))
    comparison = module.compare(path, ["ogm_ge", "g_blending"], [0], tmp_path / "runs")
    assert not comparison.failures
    assert [row[0] for row in comparison.table().rows] == ["ogm_ge", "g_blending"]


VALUES = {"method": "unimodal", "modality": "image", "encoders": {"image": "a", "text": "b"}}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"modality": "imag"}, "unknown modality 'imag': did you mean 'image'"),
        ({"encoders": None, "model_name_or_path": "some/checkpoint"}, "cannot be taken apart"),
    ],
)
def test_recipes_that_cannot_be_unimodal(changed, message):
    with pytest.raises(ValueError, match=message):
        with_one_modality(VALUES | changed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "unimodal"}, "say which, e.g. `modality: image`"),
        ({"method": "joint", "modality": "image"}, "is for `method: unimodal`, got `method: joint`"),
        ({"modality": "image"}, "is for `method: unimodal`, got `method: None`"),
        ({"method": "ogm_ge", "multimodal_to_encoders": 0.5}, "`method: ogm_ge` passes the whole"),
        ({"method": "ogm"}, "Unknown method 'ogm': did you mean 'ogm_ge'"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **settings)


def test_a_model_with_several_encoders_is_not_taken_apart(tmp_path):
    model = tiny_model(("image", "text"), **SINGLE)
    with pytest.raises(ValueError, match=r"this encoder only, got one with \['image', 'text'\]"):
        make(tmp_path, model=model, method="unimodal", modality="image")


def test_help_lists_the_new_settings():
    text = build_parser().format_help()
    assert all(
        f"--{key}" in text for key in ("modality", "ogm_alpha", "ogm_noise", "ogm_start_epoch", "ogm_end_epoch")
    )
    assert all(method in text for method in ALL_METHODS)
