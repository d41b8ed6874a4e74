"""The typed arguments of a recipe that are not the Trainer's: the model and the data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hf_dgl.training.ranges import check_ranges

from .nested import check_nested

IN_MEMORY = "in_memory"
"""`dataset_name` of a run whose data came from Python, as a `Dataset`: nobody can load it again."""

MODALITY_WORDS = ("image", "text", "audio", "video")
"""Modalities whose columns can be named before it is known which encoders there are."""

WITHOUT_FILE: dict[str, Any] = {
    "num_train_epochs": 10,
    "eval_strategy": "epoch",
    "logging_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,
}
"""What a command without recipe file has as defaults; all others are upstream's."""


@dataclass
class ModelArguments:
    """Which model is fine-tuned: encoders from anywhere, joined by a fusion of ours, or a multimodal checkpoint.

    Raises:
        ValueError: if an encoder is neither a name nor a mapping with a `model_type`.
    """

    RANGES: ClassVar[dict[str, str]] = {
        "num_fusion_layers": "[1, 1000]",
        "fusion_hidden_size": "[1, 65536]",
        "num_fusion_heads": "[1, 1024]",
        "fusion_dropout": "[0, 1)",
    }
    """Fields that are numbers -> what they can be (`hf_dgl.training.ranges`)."""

    encoders: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "The encoder of each modality: `image=google/vit-base-patch16-224 text=FacebookAI/roberta-base`. "
            "A Hub id, a local folder (of a model that hf_dgl saved: its encoder of this modality), "
            "`package:name/folder` for a checkpoint inside an installed Python package, or (in YAML) a mapping with "
            "`model_type` and config fields for an encoder that is trained from scratch."
        },
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "In place of `encoders`: a multimodal checkpoint with a fusion of its own (BridgeTower, FLAVA, "
            "LXMERT, BLIP, ModernVBert, ...), or a model that hf_dgl saved, to fine-tune it further. Hub id or folder."
        },
    )
    model_class: str | None = field(
        default=None,
        metadata={
            "help": "Class of `model_name_or_path`, e.g. FlavaForSequenceClassification. Default: the one that it was "
            "saved from. With a class that writes text (BlipForQuestionAnswering) the label is a text, and only "
            "losses are measured."
        },
    )
    fusion_type: str = field(
        default="cross_attention",
        metadata={"help": "cross_attention, merged_attention, concat, sum, gated or bilinear."},
    )
    num_fusion_layers: int = field(default=2, metadata={"help": "Layers of an attention fusion."})
    fusion_hidden_size: int | None = field(
        default=None,
        metadata={"help": "Width of the fusion. Default: chosen from the encoders' widths."},
    )
    num_fusion_heads: int | None = field(
        default=None,
        metadata={"help": "Attention heads of the fusion. Default: chosen from its width."},
    )
    fusion_dropout: float | None = field(default=None, metadata={"help": "Dropout inside the fusion."})
    fusion_read_out: str | None = field(
        default=None,
        metadata={
            "help": "What the classifier reads of an attention fusion: `means` of the tokens of each modality, or "
            "`products` (default): these means, and products of their features across modalities.",
            "choices": ["products", "means"],
        },
    )
    problem_type: str | None = field(
        default=None,
        metadata={
            "help": "What the label is. Default: told from the label column.",
            "choices": ["single_label_classification", "multi_label_classification", "regression"],
        },
    )
    peft: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Train LoRA adapters in place of the checkpoints' weights: `r=8 lora_alpha=16` or other fields of "
            "`peft.LoraConfig`. `modules=encoders` (default), `fusion` or `all` says where; what starts from "
            "scratch, a fusion that is not chosen and the classifier are trained in full."
        },
    )
    peft_merge: bool | None = field(
        default=None,
        metadata={
            "help": "After training, save a plain model with the adapters merged into its weights, which loads like "
            "any other and is as fast, and the adapters themselves in `output_dir/adapter`. False: save the adapters "
            "only. Default: true, except for quantised encoders, whose rounding a merge would disturb."
        },
    )
    load_in_4bit: bool = field(
        default=False,
        metadata={"help": "Load the encoders' checkpoints in 4 bits (bitsandbytes, NF4), to train LoRA on top."},
    )
    load_in_8bit: bool = field(
        default=False, metadata={"help": "Load the encoders' checkpoints in 8 bits (bitsandbytes), for LoRA on top."}
    )
    revision: str | None = field(
        default=None, metadata={"help": "Git revision (branch, tag or commit) of checkpoints that come from the Hub."}
    )
    token: str | None = field(
        default=None,
        metadata={
            "help": "Hub token for private checkpoints and data. Default: the one of `hf auth login`. Never saved."
        },
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run the code that a checkpoint on the Hub brings along."}
    )

    def check_named(self) -> None:
        """Refuses a recipe that names no model."""
        if self.encoders is None and self.model_name_or_path is None:
            raise ValueError(
                "The recipe names no model. Add its encoders, e.g.\nencoders:\n  image: google/vit-base-patch16-224\n"
                "  text: FacebookAI/roberta-base\n(on the command line `--encoders image=... text=...`), or a "
                "multimodal checkpoint: `model_name_or_path: facebook/flava-full`."
            )

    def __post_init__(self) -> None:
        if self.model_class is not None and self.model_name_or_path is None:
            raise ValueError("`model_class` is that of `model_name_or_path`: add the latter, or remove `model_class`.")
        if self.encoders is not None and self.model_name_or_path is not None:
            raise ValueError("`encoders` and `model_name_or_path` exclude each other: remove one of them.")
        check_ranges(self)
        self._check_peft()
        if self.encoders is not None:
            self._check_encoders()

    def _check_encoders(self) -> None:
        if not isinstance(self.encoders, Mapping) or not self.encoders:
            raise ValueError(f"encoders: expected one entry per modality (`image: <Hub id>`), got {self.encoders!r}.")
        for name, encoder in self.encoders.items():
            if isinstance(encoder, Mapping) and not {"model_type", "checkpoint"} & set(encoder):
                raise ValueError(
                    f"encoders: {name!r} is a mapping, so it is built from scratch and needs `model_type` "
                    f"(e.g. `model_type: vit`), or `checkpoint`; got the keys {sorted(encoder)}."
                )
            if isinstance(encoder, Mapping):
                for key in {"model_type", "checkpoint"} & set(encoder):
                    if not isinstance(encoder[key], str) or not encoder[key]:
                        raise ValueError(f"encoders: {name}: {key}: expected a word, got {encoder[key]!r}.")
                check_nested(f"encoders: {name}", encoder)
            if not isinstance(encoder, (str, Mapping)):
                raise ValueError(
                    f"encoders: expected a Hub id, a folder or a mapping with `model_type` for {name!r}, "
                    f"got {encoder!r}."
                )

    @property
    def bits(self) -> int | None:
        """4 or 8 for quantised encoders."""
        return 4 if self.load_in_4bit else 8 if self.load_in_8bit else None

    @property
    def merges_adapters(self) -> bool:
        """`peft_merge`, or its default."""
        return self.peft is not None and (self.bits is None if self.peft_merge is None else self.peft_merge)

    def _check_peft(self) -> None:
        if self.peft is not None and not isinstance(self.peft, Mapping):
            raise ValueError(
                "peft: expected a mapping such as `peft: {r: 8, lora_alpha: 16}` (on the command line "
                f"`--peft r=8 lora_alpha=16`), got {self.peft!r}."
            )
        check_nested("peft", self.peft or {})
        if self.load_in_4bit and self.load_in_8bit:
            raise ValueError("load_in_4bit and load_in_8bit exclude each other: remove one of them.")
        if self.bits and self.peft is None:
            raise ValueError(
                f"load_in_{self.bits}bit: quantised weights cannot be trained themselves. Add LoRA, e.g. "
                "`peft: {r: 8, lora_alpha: 16}`."
            )
        if self.bits and self.encoders is None:
            raise ValueError(f"load_in_{self.bits}bit works with `encoders`, not with `model_name_or_path`.")
        if self.bits and self.peft_merge:
            raise ValueError(
                f"peft_merge: adapters cannot be merged exactly into {self.bits}-bit weights. Remove `peft_merge` to "
                "save the adapters only."
            )


@dataclass
class DataArguments:
    """Which data the model learns from, and which column is which modality.

    Raises:
        ValueError: if no data set is named, a weight is no positive number, or a number is too small.
    """

    RANGES: ClassVar[dict[str, str]] = {
        "max_train_samples": "[1, 1000000000000]",
        "max_eval_samples": "[1, 1000000000000]",
        "dataset_seed": "[0, 4294967295]",
        "shuffle_buffer_size": "[1, 1000000000]",
        "max_audio_seconds": "(0, 86400]",
        "preprocessing_num_workers": "[1, 1024]",
    }
    """Fields that are numbers -> what they can be (`hf_dgl.training.ranges`)."""

    dataset_name: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "A Hub id, a local folder, a csv/json/jsonl/parquet file, or one of the built-in samples: "
            "`sample:image_text`, `sample:audio_text`, `sample:image_audio_text`. Several with weights, "
            "`a.csv=0.7 b.csv=0.3`, are mixed: so many of the training rows come from each."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    column_mapping: dict[str, str] | str | None = field(
        default=None,
        metadata={
            "help": "Which column holds what: `image=img text=caption label=class`. `image=media.image`: a field of a "
            "column of objects; `label=[price, weight]` (short: `--label price weight`): several numbers to predict. "
            "Default: the columns bear these names."
        },
    )
    train_split: str = field(default="train", metadata={"help": "Name of the split to train on."})
    validation_split: str = field(
        default="validation",
        metadata={
            "help": "Name of the split to choose by. If the data set has none, a tenth of the training split is taken."
        },
    )
    test_split: str | None = field(
        default="test",
        metadata={
            "help": "Name of the split that is scored once, at the end. If the data set has none, a fifth of the "
            "training split is taken; `null`: no test."
        },
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on so many rows, drawn at random."})
    max_eval_samples: int | None = field(
        default=None,
        metadata={"help": "Evaluate on so many rows of each other split, drawn at random."},
    )
    dataset_revision: str | None = field(
        default=None, metadata={"help": "Git revision (branch, tag or commit) of a data set that comes from the Hub."}
    )
    dataset_seed: int = field(
        default=0,
        metadata={
            "help": "Seed of the splitting and drawing of rows and of `sample:` data. Apart from `seed`, so that "
            "runs with several seeds share one test split.",
        },
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the rows while training, in place of loading them first: memory stays flat, however large "
            "the data. Needs `max_steps`, and `class_names` unless the label column is a ClassLabel."
        },
    )
    shuffle_buffer_size: int = field(
        default=1000,
        metadata={
            "help": "With `streaming`, rows are drawn at random from the next so many; 1: no shuffling.",
        },
    )
    class_names: list[str] | None = field(
        default=None,
        metadata={
            "help": "The names of the classes in the order of their ids: `cat dog`. Default: those of the label "
            "column. (Not `label_names`, which is the Trainer's.)"
        },
    )
    max_audio_seconds: float | None = field(
        default=None,
        metadata={
            "help": "Longer audio is cropped to so many seconds: anywhere in training, in the middle else. Default: "
            "what the encoder can take, if it has a limit.",
        },
    )
    image_background: str | None = field(
        default=None,
        metadata={
            "help": "Colour behind transparent pixels of pictures: `white`, `black`, `#808080`, ... Saved with the "
            "model. Default: white."
        },
    )
    allow_urls: bool = field(
        default=False,
        metadata={
            "help": "Fetch images and audio that a column names by http(s) addresses: at most 256 MiB each, once, "
            "into the cache folder of `datasets`."
        },
    )
    on_error: str = field(
        default="raise",
        metadata={
            "help": "What a row does that cannot be used (a broken or missing file, no label). `raise`: it stops the "
            "run where it is met. `skip`: every file is read once before training, and such rows are left out, named "
            "in a warning and in `output_dir/broken_rows.jsonl`.",
            "choices": ["raise", "skip"],
        },
    )
    preprocessing_num_workers: int | None = field(
        default=None,
        metadata={
            "help": "Processes that look for broken rows (`on_error: skip`). Default: one per CPU core.",
        },
    )

    def __post_init__(self) -> None:
        if not self.dataset_name:
            raise ValueError(
                "The recipe names no data. Add `dataset_name`, e.g. `dataset_name: sample:image_text` (on the command "
                "line `--data my.csv`)."
            )
        if isinstance(self.dataset_name, Mapping):
            self.dataset_name = {name: _weight(name, weight) for name, weight in self.dataset_name.items()}
        check_ranges(self)
        if self.image_background is not None:
            _check_colour(self.image_background)
        if isinstance(self.column_mapping, str):
            raise ValueError(
                "column_mapping: expected one `name: column` per modality (on the command line "
                f"`image=img text=caption`), got {self.column_mapping!r}."
            )


def _check_colour(name: str) -> None:
    from PIL import ImageColor

    try:
        ImageColor.getrgb(name)
    except ValueError:
        raise ValueError(f"image_background: expected a colour such as white or #808080, got {name!r}.") from None


def _weight(name: str, weight: Any) -> float:
    """A data set's share in a mixture; YAML and the shell may give text."""
    try:
        number = float(weight)
    except (TypeError, ValueError):
        number = 0.0
    if not 0 < number < float("inf"):
        raise ValueError(
            f"dataset_name: expected a weight above 0 for {name!r}, got {weight!r}. Several data sets are written "
            "`dataset_name: {a.csv: 0.7, b.csv: 0.3}` (here `--dataset_name a.csv=0.7 b.csv=0.3`)."
        )
    return number
