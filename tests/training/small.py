"""A two-modality classifier of about a hundred parameters, its rows, and both Trainers around it.

trainer = build(tmp_path, method="dgl", max_steps=3)        # ours
trainer = build(tmp_path, upstream=True, max_steps=3)       # transformers.Trainer, of the same model and data
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments
from transformers.utils import ModelOutput

from hf_dgl.training.arguments import DGLTrainingArguments
from hf_dgl.training.trainer import DGLTrainer

MODALITIES = {"image": "image_encoder", "text": "text_encoder"}
WIDTH, NUM_LABELS = 4, 3


@dataclass
class SmallOutput(ModelOutput):
    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class SmallConfig(PreTrainedConfig):
    model_type = "small_two_inputs"

    dropout: float = 0.0
    gap: float = 0.0


class Small(PreTrainedModel):
    """`image` and `text`, float `[N, 4]` each -> an encoder each -> concatenation -> logits `[N, num_labels]`."""

    config_class = SmallConfig
    main_input_name = "image"

    def __init__(self, config):
        super().__init__(config)
        self.image_encoder = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Dropout(config.dropout))
        self.text_encoder = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Dropout(config.dropout))
        self.layer_norm = nn.LayerNorm(2 * WIDTH)
        self.head = nn.Linear(2 * WIDTH, config.num_labels)
        self.post_init()

    def _init_weights(self, module):
        pass

    def forward(self, image=None, text=None, labels=None):
        features = [self.image_encoder(image.to(self.dtype)), self.text_encoder(text.to(self.dtype))]
        logits = self.head(self.layer_norm(torch.cat(features, -1)))
        return SmallOutput(None if labels is None else self._loss(logits, labels), logits)

    def _loss(self, logits, labels):
        kind = self.config.problem_type
        if kind == "regression":
            return nn.functional.mse_loss(logits.squeeze(-1), labels.float())
        if kind == "multi_label_classification":
            return nn.functional.binary_cross_entropy_with_logits(logits, labels.float())
        return nn.functional.cross_entropy(logits, labels)


def small_model(problem_type="single_label_classification", seed=0, **config):
    """As the same seed always gives it; in eval mode."""
    torch.manual_seed(seed)
    num_labels = 1 if problem_type == "regression" else NUM_LABELS
    return Small(SmallConfig(problem_type=problem_type, num_labels=num_labels, **config)).eval()


def small_rows(num_rows=24, problem_type="single_label_classification", seed=0) -> list[dict[str, Any]]:
    """Rows whose label can be told from either input, and better from both."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for index in range(num_rows):
        label = index % NUM_LABELS
        image, text = torch.randn(2, WIDTH, generator=generator)
        image[label] += 1
        text[label] += 1
        value: Any = label
        if problem_type == "regression":
            value = float(label)
        elif problem_type == "multi_label_classification":
            value = [float(label == 0), float(label != 1), 1.0]
        rows.append({"image": image, "text": text, "labels": value})
    return rows


OF_TRAINER = (
    "train_dataset eval_dataset data_collator processing_class model_init compute_loss_func compute_metrics callbacks "
    "optimizers optimizer_cls_and_kwargs preprocess_logits_for_metrics"
).split()

DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "max_steps": 4,
    "learning_rate": 0.05,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "use_cpu": True,
    "seed": 3,
    "remove_unused_columns": False,
    "dataloader_pin_memory": False,
}


def build(folder, upstream=False, model=None, trainer=None, **settings) -> Any:
    """A Trainer of a small model: settings of the Trainer and of its arguments, by name."""
    passed = {name: settings.pop(name) for name in OF_TRAINER if name in settings}
    arguments = {**DEFAULTS, **settings}
    passed = {"train_dataset": small_rows(), **passed}
    if model is None and "model_init" not in passed:
        model = small_model()
    if upstream:
        arguments.pop("method", None)
        return (trainer or Trainer)(model, TrainingArguments(str(folder), **arguments), **passed)
    args = DGLTrainingArguments(str(folder), **arguments)
    return (trainer or DGLTrainer)(model, args, modalities=MODALITIES, **passed)


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_same(first, second):
    """Bit for bit."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
