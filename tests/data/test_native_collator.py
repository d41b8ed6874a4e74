"""Batches for checkpoints of several kinds: what each processor is given, labels, answers, and rows that do not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hf_dgl.data.labels import LabelSpec
from hf_dgl.data.native_collator import NativeCollator, _continued
from hf_dgl.models.native import NativeProcessor, load_native
from tests.native_checkpoints import FEATURES, REGIONS, save_checkpoint

TWO = LabelSpec("single_label_classification", ("no", "yes"))


@pytest.fixture(scope="module")
def processors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NativeProcessor]:
    folder = tmp_path_factory.mktemp("checkpoints")
    names = ("flava", "bridgetower", "lxmert", "blip", "instructblip_t5", "modernvbert")
    return {name: NativeProcessor.from_pretrained(save_checkpoint(name, folder / name)) for name in names}


def rows(label: Any = (0, 1)) -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "image": Image.fromarray(rng.integers(0, 256, (20 + i, 24, 3), dtype=np.uint8)),
            "text": ["is this a cat", "what is that " * 9][i],
            "visual_feats": rng.random((REGIONS, FEATURES)).tolist(),
            "visual_pos": rng.random((REGIONS, 4)).tolist(),
            "label": label[i],
            "row": f"train[{i}]",
        }
        for i in range(2)
    ]


@pytest.mark.parametrize("name", ["flava", "bridgetower", "lxmert", "modernvbert"])
def test_a_batch_gives_a_loss(processors: dict[str, NativeProcessor], name: str, tmp_path: Path) -> None:
    processor = processors[name]
    batch = NativeCollator(processor, TWO)(rows())
    model = load_native(save_checkpoint(name, tmp_path), processor.model_class, TWO)
    assert torch.isfinite(model(**batch).loss)
    assert batch["labels"].tolist() == [0, 1] and batch["labels"].dtype == torch.long
    assert batch["input_ids"].shape[1] <= processor.processors["text"].model_max_length


def test_text_is_cut_off(processors: dict[str, NativeProcessor]) -> None:
    ids = NativeCollator(processors["flava"])(rows())["input_ids"]
    assert ids.shape == (2, 12)


def test_region_features_become_tensors(processors: dict[str, NativeProcessor]) -> None:
    batch = NativeCollator(processors["lxmert"], TWO)(rows())
    assert batch["visual_feats"].shape == (2, REGIONS, FEATURES) and batch["visual_feats"].dtype == torch.float32
    assert batch["visual_pos"].shape == (2, REGIONS, 4)
    assert "image" not in batch and "pixel_values" not in batch


def test_image_placeholder_comes_first(processors: dict[str, NativeProcessor]) -> None:
    processor = processors["modernvbert"]
    batch = NativeCollator(processor, TWO)(rows())
    tokenizer = processor.processors["text"]
    tokens = tokenizer.convert_ids_to_tokens(batch["input_ids"][0])
    assert tokens.count("<image>") == 4  # one picture of four tokens per row
    assert tokens.index("<image>") < tokens.index("cat")
    assert batch["pixel_values"].shape[:2] == (2, 1)


def test_multi_label_and_regression(processors: dict[str, NativeProcessor]) -> None:
    several = LabelSpec("multi_label_classification", ("a", "b"))
    labels = NativeCollator(processors["flava"], several)(rows((["a"], ["a", "b"])))["labels"]
    assert labels.tolist() == [[1.0, 0.0], [1.0, 1.0]]
    number = NativeCollator(processors["flava"], LabelSpec("regression", ("x",)))(rows((0.5, 2)))["labels"]
    assert number.tolist() == [0.5, 2.0] and number.dtype == torch.float32


def test_answers_for_a_decoder(processors: dict[str, NativeProcessor]) -> None:
    processor = processors["blip"]
    batch = NativeCollator(processor)(rows(("yes", "no two")))
    start, end = processor.config.text_config.bos_token_id, processor.config.text_config.eos_token_id
    yes, no, two = processor.processors["text"].convert_tokens_to_ids(["yes", "no", "two"])
    assert batch["labels"].tolist() == [[start, yes, end, -100], [start, no, two, end]]
    assert batch["decoder_input_ids"].tolist() == [[start, yes, end, 0], [start, no, two, end]]
    assert batch["decoder_attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]


def test_what_a_decoder_is_to_write_its_encoder_does_not_read(processors: dict[str, NativeProcessor]) -> None:
    collate = NativeCollator(processors["instructblip_t5"])
    batch, other = collate(rows(("red", "no two"))), collate(rows(("green", "no two")))
    assert torch.equal(batch["input_ids"], other["input_ids"])
    start, red, end = processors["instructblip_t5"].processors["text"]("red")["input_ids"]
    assert batch["labels"][0].tolist() == [start, red, end, -100]


def test_answers_behind_a_prompt() -> None:
    """As for LLaVA: the prompt and the padding carry no label."""
    batch = {
        "input_ids": torch.tensor([[7, 8, 0], [7, 8, 9]]),
        "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
        "token_type_ids": torch.tensor([[1, 0, 0], [1, 0, 0]]),
        "pixel_values": torch.zeros(2, 3, 4, 4),
    }
    continued = _continued(batch, [[4, 5, 2], [6, 2]], pad_token_id=0)
    assert continued["input_ids"].tolist() == [[7, 8, 4, 5, 2], [7, 8, 9, 6, 2]]
    assert continued["labels"].tolist() == [[-100, -100, 4, 5, 2], [-100, -100, -100, 6, 2]]
    assert continued["attention_mask"].tolist() == [[1] * 5, [1] * 5]
    assert continued["token_type_ids"].tolist() == [[1, 0, 0, 0, 0], [1, 0, 0, 0, 0]]
    shorter = _continued(batch, [[2], [6, 2]], pad_token_id=0)
    assert shorter["labels"].tolist() == [[-100, -100, 2, -100, -100], [-100, -100, -100, 6, 2]]
    assert shorter["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]


def test_without_labels(processors: dict[str, NativeProcessor]) -> None:
    plain = [{key: value for key, value in row.items() if key != "label"} for row in rows()]
    assert "labels" not in NativeCollator(processors["flava"], TWO)(plain)
    assert "labels" not in NativeCollator(processors["blip"])(plain)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "flava",
            {"text": None},
            r"Row train\[1\] has no 'text', and FlavaForSequenceClassification reads all of its",
        ),
        ("flava", {"image": "gone.png"}, r"Row train\[1\], 'image': .*gone.png"),
        ("flava", {"label": 2}, r"Row train\[1\]: label 2 is none of the class ids"),
        ("lxmert", {"visual_pos": "far"}, r"Row train\[1\], 'visual_pos': expected an array of numbers, got str"),
        ("lxmert", {"visual_pos": [[0.0] * 4]}, r"'visual_pos': the arrays of one batch differ in shape"),
        ("blip", {"label": None}, r"Row train\[1\]: BlipForQuestionAnswering learns to write its labels.*got None"),
    ],
)
def test_rows_that_do_not_do(
    processors: dict[str, NativeProcessor], name: str, change: dict[str, Any], message: str
) -> None:
    labels = None if name == "blip" else TWO
    first, second = rows(("no", "yes"))
    with pytest.raises(ValueError, match=message):
        NativeCollator(processors[name], labels)([first, {**second, **change}])


def test_columns_of_other_names(processors: dict[str, NativeProcessor]) -> None:
    with pytest.raises(ValueError, match="none of the modalities.*Map them"):
        NativeCollator(processors["flava"], TWO)([{"picture": 1, "label": 0}])
