"""`DGLTrainingArguments`: the Trainer's arguments, and the method's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import yaml
from transformers import TrainingArguments

from hf_dgl.method.methods import ALL_METHODS, AS_PUBLISHED, UNIMODAL
from hf_dgl.method.modalities import did_you_mean

from .ranges import check_ranges

BALANCED = "balanced"

PER_MODALITY = ("alpha", "multimodal_to_encoders", "encoder_learning_rate")
"""Settings that are one number, or one per modality. `str` comes second in their types, and None is among them: so
`HfArgumentParser` leaves them to us as words."""


@dataclass
class DGLTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the settings of disentangled gradient learning.

    Differences to upstream's defaults: `remove_unused_columns` is False (the collator reads whole rows).

    Raises:
        ValueError: an unknown `method`, a setting that the method fixes, or a number out of its range.

    Example:

        >>> DGLTrainingArguments("out", method="dgl", alpha={"image": 2.0, "text": 1.0})
    """

    RANGES: ClassVar[dict[str, str]] = {
        "per_device_train_batch_size": "[1, 1000000]",
        "per_device_eval_batch_size": "[1, 1000000]",
        "gradient_accumulation_steps": "[1, 1000000]",
        "eval_accumulation_steps": "[1, 1000000]",
        "num_train_epochs": "(0, 1000000]",
        "max_steps": "-1 or [1, 1000000000]",
        "warmup_steps": "[0, 1000000000]",
        "learning_rate": "[0, 100]",
        "lr_scheduler_kwargs": "(-inf, inf)",
        "weight_decay": "[0, 100]",
        "adam_beta1": "[0, 1)",
        "adam_beta2": "[0, 1)",
        "adam_epsilon": "[0, 1]",
        "max_grad_norm": "[0, inf)",
        "label_smoothing_factor": "[0, 1)",
        "neftune_noise_alpha": "[0, inf)",
        "logging_steps": "(0, inf)",
        "eval_steps": "(0, inf)",
        "eval_delay": "[0, inf)",
        "save_steps": "(0, inf)",
        "save_total_limit": "[1, inf)",
        "seed": "[0, 4294967295]",
        "data_seed": "[0, 4294967295]",
        "dataloader_num_workers": "[0, 1024]",
        "dataloader_prefetch_factor": "[1, 1024]",
        "torch_empty_cache_steps": "[1, inf)",
        "ddp_bucket_cap_mb": "[1, inf)",
        "ddp_timeout": "[1, inf)",
        "alpha": "[0, 1000000]",
        "multimodal_to_encoders": "[0, 1]",
        "ogm_alpha": "[0, 1000]",
        "ogm_start_epoch": "[0, inf)",
        "ogm_end_epoch": "(0, inf)",
        "modality_dropout": "[0, 1]",
        "encoder_learning_rate": "[0, 100]",
        "learning_rate_mapping": "[0, 100]",
    }
    """Fields that are numbers -> what they can be (`ranges.py`); upstream's are among them."""

    method: str | None = field(
        default=None,
        metadata={
            "help": "`dgl`: each encoder learns from its own unimodal loss, the fusion from the multimodal loss. "
            "`adaptive_dgl`: `dgl` as far as the modalities repeat one another, which it measures in training; where "
            "the label is told by their interplay it is joint training. "
            "`joint`: plain training with the multimodal loss. `auxiliary`: unimodal losses are added, nothing is "
            "truncated. `multimodal_truncation`, `unimodal_truncation`: only one of DGL's two truncations (the "
            "paper's ablations). Baselines by others: `ogm_ge` slows down the encoder of the modality that predicts "
            "better by itself; `g_blending` weighs all losses by how they overfit and generalise; `unimodal` trains "
            "`modality` without the others. Default: `dgl`, unless another is better for the checkpoint.",
            "choices": list(ALL_METHODS),
        },
    )
    alpha: float | str | dict[str, float] | None = field(
        default=1.0,
        metadata={
            "help": "Weight of the unimodal losses: one number, or `image=1 text=2`. With Adam-like optimisers it "
            "acts through gradient clipping only; use `encoder_learning_rate` there.",
        },
    )
    multimodal_to_encoders: float | str | dict[str, float] | None = field(
        default=None,
        metadata={
            "help": "Share (0 to 1) of the multimodal loss's gradient that passes to the encoders: one number, or one "
            "per modality. Default: what `method` says (0 for dgl).",
        },
    )
    modality: str | None = field(
        default=None,
        metadata={"help": "For `method: unimodal`: the one modality whose encoder is built and trained, e.g. image."},
    )
    ogm_alpha: float = field(
        default=0.1,
        metadata={
            "help": "For `method: ogm_ge`: how strongly the dominant encoder is slowed down; its gradient is "
            "multiplied by 1 - tanh(ogm_alpha * ratio). With Adam-like optimisers a constant factor cancels out.",
        },
    )
    ogm_noise: bool = field(
        default=True,
        metadata={"help": "For `method: ogm_ge`: add Gaussian noise of the gradients' size to the encoders (GE)."},
    )
    ogm_start_epoch: float = field(
        default=0.0, metadata={"help": "For `method: ogm_ge`: modulate from this epoch on."}
    )
    ogm_end_epoch: float | None = field(
        default=None,
        metadata={
            "help": "For `method: ogm_ge`: modulate until this epoch. Default: to the end.",
        },
    )
    modality_dropout: float = field(
        default=0.0,
        metadata={
            "help": "In training, each modality of each row is left out with this probability, as if the row lacked "
            "it; at least one stays. With `method: joint` it is the usual baseline for missing modalities (ModDrop, "
            "arXiv 1501.00102). Evaluation is not touched."
        },
    )
    partition: str | None = field(
        default=None,
        metadata={
            "help": "For checkpoints whose text encoder attends to the image (BLIP, Mllama, ...): where it ends. "
            "`embeddings`: the layers that mix modalities belong to the fusion as a whole. `by_name`: within them, "
            "all but the cross-attention belongs to the text. `hf-dgl inspect` shows what each gives."
        },
    )
    encoder_learning_rate: float | str | dict[str, float] | None = field(
        default=None,
        metadata={
            "help": "Learning rate of the encoders: one number, or one per modality. Default: `learning_rate`, as for "
            "the fusion.",
        },
    )
    learning_rate_mapping: dict[str, float] | str | None = field(
        default=None,
        metadata={
            "help": "Learning rate of the parameters in whose names a regular expression is found: "
            "`embeddings=1e-6 '^classifier=1e-3'`. The first expression that matches counts; it wins over "
            "`encoder_learning_rate`, which wins over `learning_rate`.",
        },
    )
    freeze: list[str] | None = field(
        default=None,
        metadata={
            "help": "Parts that are not trained: modalities (their encoders), or `fusion` for all that is no encoder. "
            "A frozen encoder needs no unimodal pass."
        },
    )
    clip_by_group: bool | None = field(
        default=None,
        metadata={
            "help": "Clip each encoder's and the fusion's gradient by its own norm (`max_grad_norm`), since one "
            "global norm lets them scale one another. Default: True, except for `joint` and the baselines by others."
        },
    )
    class_weights: dict[str, float] | str | None = field(
        default=None,
        metadata={
            "help": "Weights of the classes in the loss: `balanced` (rare classes count more), or `cat=2 dog=1` by "
            "name, where others weigh 1. With several labels per row the weight is that of a class's positive rows."
        },
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop when `metric_for_best_model` (default: the validation loss) has not improved for so many "
            "evaluations. With `load_best_model_at_end` the best model stays."
        },
    )
    log_gradients: bool = field(
        default=False,
        metadata={
            "help": "Log, for each modality, the norm of the multimodal loss's gradient at its encoder's output, "
            "relative to its unimodal loss's (`grad_ratio_image`; below 1, the other modalities suppress it), and "
            "their cosine (`grad_cosine_image`). It costs nothing where the method has unimodal losses; `joint` runs "
            "the fusion once more per modality at every tenth step."
        },
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": "Replace the model that `output_dir` holds, and delete the checkpoints there. Without it a run "
            "that would do so stops before it begins. (The Trainer by itself does not ask.)"
        },
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Remove columns that are no argument of the model's forward."}
    )

    def __post_init__(self) -> None:
        for name in PER_MODALITY:
            setattr(self, name, _parsed(name, getattr(self, name)))
        self.learning_rate_mapping = _entries(self.learning_rate_mapping)
        self.class_weights = _weights(self.class_weights)
        check_ranges(self)
        self._check_method()
        self._check_evaluations()
        self.learning_rates_by_pattern()
        self.direction_is_given = self.greater_is_better is not None  # upstream fills in its own rule
        if self.clip_by_group is None:
            self.clip_by_group = self.method not in AS_PUBLISHED
        try:
            super().__post_init__()
        except ValueError as error:
            wanted = [name for name in ("bf16", "bf16_full_eval", "tf32") if getattr(self, name)]
            if not wanted or not any(word in str(error) for word in ("bf16", "tf32")):
                raise
            raise ValueError(
                f"{wanted[0]}: true needs a GPU that can do it, and there is none here. Type `--{wanted[0]} false`"
                + ("." if wanted[0] == "tf32" else ", or `--use_cpu true` to compute in bfloat16 on the CPU.")
            ) from error
        if self.fp16 and self.device.type == "cpu":
            raise ValueError(
                "fp16: true needs a GPU, and there is none here (or `use_cpu` is set). Type `--fp16 false`, or "
                "`--fp16 false --bf16 true --use_cpu true` to compute in bfloat16 on the CPU."
            )

    def _check_method(self) -> None:
        if self.method is not None and self.method not in ALL_METHODS:
            known = list(ALL_METHODS)
            raise ValueError(f"Unknown method {self.method!r}{did_you_mean(self.method, known)} Known: {known}.")
        if self.method in AS_PUBLISHED and self.multimodal_to_encoders not in (None, 1.0):
            raise ValueError(
                f"`method: {self.method}` passes the whole multimodal gradient to the encoders: remove "
                f"`multimodal_to_encoders`, or choose `method: dgl` to use {self.multimodal_to_encoders!r}."
            )
        if self.method == UNIMODAL and self.modality is None:
            raise ValueError("`method: unimodal` trains one modality: say which, e.g. `modality: image`.")
        if self.method != UNIMODAL and self.modality is not None:
            raise ValueError(
                f"`modality: {self.modality}` is for `method: unimodal`, got `method: {self.method}`. Change the "
                "method to train this modality alone, or remove `modality` to train all."
            )

    def _check_evaluations(self) -> None:
        """Upstream keeps the last model in silence where `load_best_model_at_end` has nothing to choose from."""
        is_evaluated = str(getattr(self.eval_strategy, "value", self.eval_strategy)) != "no"
        if self.load_best_model_at_end and not is_evaluated:
            raise ValueError(
                "`load_best_model_at_end` chooses among evaluations, and there are none: set e.g. `eval_strategy: "
                "epoch` and `save_strategy: epoch`; or, to keep the last model, `load_best_model_at_end: false`."
            )
        if self.early_stopping_patience is None:
            return
        if self.early_stopping_patience < 1:
            raise ValueError(f"early_stopping_patience: expected 1 or more, got {self.early_stopping_patience}.")
        if not is_evaluated:
            raise ValueError(
                "`early_stopping_patience` counts evaluations, and there are none: set e.g. `eval_strategy: epoch`."
            )
        self.metric_for_best_model = self.metric_for_best_model or "loss"

    def learning_rates_by_pattern(self) -> dict[str, float]:
        """`learning_rate_mapping` with its patterns and numbers checked."""
        mapping = {} if self.learning_rate_mapping is None else self.learning_rate_mapping
        if not isinstance(mapping, Mapping):
            raise ValueError(f"learning_rate_mapping: expected `pattern: learning rate` entries, got {mapping!r}.")
        for pattern, rate in mapping.items():
            try:
                re.compile(pattern)
                float(rate)
            except re.error as error:
                raise ValueError(f"learning_rate_mapping: {pattern!r} is no regular expression ({error}).") from error
            except (TypeError, ValueError) as error:
                raise ValueError(f"learning_rate_mapping: expected a number for {pattern!r}, got {rate!r}.") from error
        return {pattern: float(rate) for pattern, rate in mapping.items()}

    @property
    def learning_rates_by_group(self) -> list[str]:
        """The names of the settings that are given and make learning rates differ between parameters."""
        names = ("encoder_learning_rate", "learning_rate_mapping")
        return [name for name in names if getattr(self, name) not in (None, {})]

    def disentangle_kwargs(self) -> dict[str, Any]:
        """The keyword arguments of [`hf_dgl.disentangle`] that the method and its settings amount to."""
        method = ALL_METHODS[self.method or "dgl"]
        share = method.multimodal_to_encoders if self.multimodal_to_encoders is None else self.multimodal_to_encoders
        return {
            "alpha": numbers(self.alpha) if method.alpha is None else method.alpha,
            "multimodal_to_encoders": numbers(share),
            "unimodal_to_fusion": method.unimodal_to_fusion,
        }


def numbers(value: Any) -> float | dict[str, float]:
    """A setting that is one number, or one per modality, with its numbers as floats (YAML reads `1e-4` as text)."""
    return {key: float(entry) for key, entry in value.items()} if isinstance(value, Mapping) else float(value)


def _parsed(name: str, value: Any) -> Any:
    """A setting that is one number, or one per modality: from Python, YAML, JSON, or words of a command line."""
    if value is None and name != "alpha":
        return None
    try:
        return numbers(_entries(1.0 if value is None else value))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: expected a number, or one per modality, got {value!r}. In Python and YAML it is written "
            f'`{{image: 1, text: 2}}`, on a command line `--{name} \'{{"image": 1, "text": 2}}\'` or '
            f"`--{name} 'image=1 text=2'`."
        ) from error


def _entries(value: Any) -> Any:
    """A mapping for the words that stand for it on a command line, JSON or `name=value name=value`; else the value."""
    if not isinstance(value, str) or not ("=" in value or value.startswith("{")):
        return value
    if value.startswith("{"):
        return yaml.safe_load(value)  # JSON is YAML
    words = value.replace(",", " ").split()
    return {name: number for name, _, number in (word.rpartition("=") for word in words)}


def _weights(value: Any) -> Any:
    """`class_weights`, with its numbers checked."""
    value = _entries(value)
    if value is None or value == BALANCED:
        return value
    try:
        weights = {str(name): float(weight) for name, weight in value.items()}
    except (AttributeError, TypeError, ValueError):
        weights = {}
    if not weights or not all(0 <= weight < float("inf") for weight in weights.values()):
        near = did_you_mean(value, [BALANCED]) if isinstance(value, str) else "."
        raise ValueError(
            f"class_weights: expected `balanced`, or one number (0 or more) per class, got {value!r}{near} E.g. "
            "`class_weights: {cat: 2.0, dog: 1.0}`; on the command line `--class_weights cat=2 dog=1`."
        )
    return weights
