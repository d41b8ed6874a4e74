"""`DGLTrainer` on checkpoints as they are: no module paths from the user, the row's method, save and resume."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hf_dgl import DGLTrainer, DGLTrainingArguments
from tests.architectures_tiny import TINY
from tests.devices import current, put

pytestmark = pytest.mark.device


class Rows(torch.utils.data.Dataset):
    """The rows of a batch, again and again."""

    def __init__(self, batch: dict[str, Any], length: int = 24) -> None:
        self.batch, self.length = batch, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: value[index % len(value)].cpu() for key, value in self.batch.items()}


def make(name: str, folder: Any, **kwargs: Any) -> DGLTrainer:
    model, batch = TINY[name]()
    settings = {"per_device_train_batch_size": 3, "max_steps": 4, "save_steps": 2, "logging_steps": 2}
    arguments = DGLTrainingArguments(
        str(folder),
        use_cpu=current().type == "cpu",
        report_to=[],
        disable_tqdm=True,
        learning_rate=1e-2,
        **{**settings, **kwargs},
    )
    return DGLTrainer(model, arguments, train_dataset=Rows(batch), eval_dataset=Rows(batch, 6))


@pytest.mark.parametrize(
    "name",
    ["BridgeTowerForImageAndTextRetrieval", "FlavaForSequenceClassification", "Gemma3ForSequenceClassification"],
)
def test_a_checkpoint_just_works(name, tmp_path):
    trainer = make(name, tmp_path)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert {"loss_multimodal", "loss_image", "loss_text", "grad_norm_fusion"} <= set(logged)
    metrics = trainer.evaluate()
    assert metrics["eval_loss"] > 0


def test_the_method_is_the_rows_unless_chosen(tmp_path):
    assert make("LxmertForQuestionAnswering", tmp_path).args.method == "multimodal_truncation"
    assert make("LxmertForQuestionAnswering", tmp_path, method="dgl").args.method == "dgl"
    assert make("FlavaForSequenceClassification", tmp_path).args.method == "dgl"


def test_what_each_modality_explains_is_followed(tmp_path):
    """LXMERT counts its classes by a name of its own, and its config's `num_labels` is 2."""
    model, batch = TINY["LxmertForQuestionAnswering"]()
    model.config.problem_type = "single_label_classification"
    assert model.config.num_labels < model.config.num_qa_labels
    arguments = DGLTrainingArguments(
        str(tmp_path), use_cpu=current().type == "cpu", max_steps=2, logging_steps=1, save_strategy="no"
    )
    trainer = DGLTrainer(model, arguments, train_dataset=Rows({**batch, "labels": torch.tensor([3, 2, 3])}))
    trainer.train()
    assert "explained_image" in trainer.state.log_history[0]


def test_partitions(tmp_path):
    sizes = {}
    for partition in ("embeddings", "by_name"):
        handle = make("BlipForQuestionAnswering", tmp_path, partition=partition).disentangled
        sizes[partition] = len(handle.partition.parameter_names("text"))
    assert sizes["embeddings"] < sizes["by_name"]
    with pytest.raises(ValueError, match="has no partition 'by_nam': did you mean 'by_name'"):
        make("BlipForQuestionAnswering", tmp_path, partition="by_nam")


def test_partition_and_modalities_exclude_each_other(tmp_path):
    model, _ = TINY["FlavaForSequenceClassification"]()
    arguments = DGLTrainingArguments(str(tmp_path), use_cpu=current().type == "cpu", partition="encoders")
    with pytest.raises(ValueError, match="remove either"):
        DGLTrainer(model, arguments, modalities={"image": "flava.image_model", "text": "flava.text_model"})


@pytest.mark.parametrize("name", ["LlavaForConditionalGeneration", "BridgeTowerForImageAndTextRetrieval"])
def test_resuming_goes_on_from_the_trained_weights(name, tmp_path):
    """Upstream saves LLaVA under the names of older releases, and resumes without translating them."""
    whole = make(name, tmp_path)
    whole.train()
    resumed = make(name, tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key


def test_the_final_model_is_a_plain_checkpoint(tmp_path):
    trainer = make("LlavaForConditionalGeneration", tmp_path / "run")
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    loaded, info = type(trainer.model).from_pretrained(tmp_path / "final", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    batch = TINY["LlavaForConditionalGeneration"]()[1]
    trainer.disentangled.remove()
    with torch.no_grad():
        assert torch.equal(trainer.model.eval()(**batch).loss, put(loaded.eval())(**batch).loss)


@pytest.mark.parametrize("name", ["BlipForQuestionAnswering", "GitForCausalLM", "FlavaForSequenceClassification"])
def test_activation_checkpointing(name, tmp_path):
    """BLIP and GIT add to their embeddings in place, and raise if these are leaves that require gradients."""
    plain, checkpointed = make(name, tmp_path / "plain"), make(name, tmp_path / "gc", gradient_checkpointing=True)
    for trainer in (plain, checkpointed):
        trainer.train()
    for key, value in plain.model.state_dict().items():
        torch.testing.assert_close(value, checkpointed.model.state_dict()[key], msg=key)


def test_without_a_problem_type_it_says_how_to_see_accuracies(tmp_path, caplog):
    with caplog.at_level("WARNING", logger="hf_dgl.training.trainer"):
        make("FlavaForSequenceClassification", tmp_path)
    assert "Set `model.config.problem_type`" in caplog.text
    model, batch = TINY["FlavaForSequenceClassification"]()
    model.config.problem_type = "single_label_classification"
    arguments = DGLTrainingArguments(str(tmp_path), use_cpu=current().type == "cpu", report_to=[])
    metrics = DGLTrainer(model, arguments, eval_dataset=Rows(batch, 6)).evaluate()
    assert {"eval_accuracy", "eval_accuracy_image", "eval_accuracy_text"} <= set(metrics)


def test_a_token_reaches_no_file(tmp_path):
    token = "hf_" + "secret" * 6
    trainer = make("FlavaForSequenceClassification", tmp_path, hub_token=token)
    trainer.train()
    trainer.save_model()
    assert trainer.args.hub_token == token
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert any(file.name == "training_args.bin" for file in files)
    assert not [file for file in files if token.encode() in file.read_bytes()]
