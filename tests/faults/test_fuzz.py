"""Recipes and data that somebody has damaged at random (seeded): refused in words, or right; never a traceback.

A mutation that a check missed is printed with its number: `mutate(Random(number), ...)` makes it again.
"""

from __future__ import annotations

import copy
import json
import math
import random
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from hf_dgl.data import CrossModalCollator, LabelSpec, load_data
from hf_dgl.models.encoder_specs import resolve_encoder
from hf_dgl.recipe.assembly import build_model
from hf_dgl.recipe.recipe import Recipe, load_recipe
from tests.recipes import tiny_recipe
from tests.tiny import tiny_processor

pytestmark = pytest.mark.slow

TOLD = (ValueError, OSError)  # what `hf-dgl` prints as one message; anything else is a traceback


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Of processor time: the tests share the machine."""

    def over(*_: Any) -> None:
        raise AssertionError(f"hangs: more than {seconds} s")

    before = signal.signal(signal.SIGVTALRM, over)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


# ---- recipes ----

# Values that are nonsense in these fields, whatever else a recipe holds; written down apart from the package's ranges.
NOT_FINITE = [math.nan, math.inf, -math.inf, ".nan", "-.inf"]
NONSENSE: dict[str, list[Any]] = {
    **dict.fromkeys("learning_rate weight_decay max_grad_norm adam_epsilon alpha".split(), [-1, -1e-9]),
    **dict.fromkeys("adam_beta1 adam_beta2".split(), [1, 1.5, -0.1]),
    **dict.fromkeys("label_smoothing_factor fusion_dropout multimodal_to_encoders".split(), [5, -0.5, 1.01]),
    **dict.fromkeys(
        "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps num_fusion_layers "
        "max_train_samples max_eval_samples num_fusion_heads fusion_hidden_size".split(),
        [0, -1, -8, 0.5, "many", 10**30],
    ),
    **dict.fromkeys("num_train_epochs logging_steps save_steps".split(), [0, -1]),
    "max_steps": [-5, -2, 0, 1.5],
    "warmup_steps": [-1],
    "seed": [-1, 2**40, 1.5],
    "dataset_seed": [-1, 2**40],
    "dataloader_num_workers": [-1, 10**6],
}
OF_ENCODERS: dict[str, list[Any]] = {
    **dict.fromkeys(
        "hidden_size num_attention_heads num_hidden_layers intermediate_size".split(), [0, -4, 2.5, "wide", 10**15]
    ),
    **dict.fromkeys("image_size patch_size vocab_size max_position_embeddings".split(), [0, -1, 1.5, 10**15]),
    **dict.fromkeys("hidden_dropout_prob attention_probs_dropout_prob".split(), [1, 1.5, -0.1]),
    **dict.fromkeys("layer_norm_eps initializer_range".split(), [-1]),
}
ANYTHING = [None, True, "", "x", [], {}, [1], {"a": 1}, -1, 0, 1, 2.5, "1e-3", 10**20, "ü" * 300, "2024-01-01", "no"]


def mutate(rng: random.Random, values: dict[str, Any]) -> tuple[str | bytes, bool]:
    """The text of a damaged recipe, and whether it is certain nonsense."""
    values = copy.deepcopy(values)
    kind = rng.choice(["nonsense", "not finite", "encoder", "anything", "anything", "remove", "key", "bytes", "lines"])
    if kind == "nonsense":
        key = rng.choice(sorted(NONSENSE))
        values[key] = rng.choice(NONSENSE[key])
    elif kind == "not finite":
        values[rng.choice(sorted(NONSENSE))] = rng.choice(NOT_FINITE)
    elif kind == "encoder":
        key = rng.choice(sorted(OF_ENCODERS))
        owner = "image" if key in ("image_size", "patch_size") else "text" if "vocab" in key or "max_" in key else None
        encoder = values["encoders"][owner or rng.choice(["image", "text"])]
        encoder[key] = rng.choice([*OF_ENCODERS[key], math.nan, math.inf])
    elif kind == "anything":
        where = rng.choice([values, values["encoders"], *values["encoders"].values()])
        where[rng.choice(sorted(where))] = rng.choice(ANYTHING)
    elif kind == "remove":
        where = rng.choice([values, values["encoders"]["image"]])
        del where[rng.choice(sorted(where))]
    elif kind == "key":
        key = rng.choice(sorted(values))
        values[rng.choice([key.upper(), key + "s", key[1:], "x", ""])] = values.pop(key)
    return damage(rng, yaml.safe_dump(values, sort_keys=False), kind), kind in ("nonsense", "not finite", "encoder")


def damage(rng: random.Random, text: str, kind: str) -> str | bytes:
    """Other bytes, or lines in other places."""
    if kind == "bytes":
        content = bytearray(text.encode())
        for _ in range(rng.randint(1, 8)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        return bytes(content)
    if kind == "lines":
        lines = text.splitlines()
        for _ in range(rng.randint(1, 4)):
            line = rng.choice(lines)
            lines.insert(rng.randrange(len(lines)), rng.choice([line, line.strip(), "  " + line, "&a " + line, "- x"]))
        text = "\n".join(lines)
    return text


def test_a_thousand_damaged_recipes(tmp_path: Path) -> None:
    values = tiny_recipe("out", alpha=1.0, num_train_epochs=1.0, fusion_dropout=0.1)
    path, missed, accepted = tmp_path / "r.yaml", [], []
    for number in range(1000):
        text, is_nonsense = mutate(random.Random(number), values)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        try:
            with within(2):
                recipe = load_recipe(path)
        except TOLD as error:
            if len(str(error)) > 2000 or not str(error):
                missed.append(f"{number}: {str(error)[:300]}")
        except BaseException:
            missed.append(f"{number}: {traceback.format_exc(limit=-2)}")
        else:
            accepted.append((number, recipe))
            if is_nonsense:
                missed.append(f"{number}: accepted\n{text!r}")
    assert not missed, "\n".join(missed)
    assert 50 < len(accepted) < 500
    spec = LabelSpec("single_label_classification", ["a", "b", "c"])
    missed = [words for number, recipe in accepted if (words := built(recipe, spec, number))]
    assert not missed, "\n".join(missed)


def built(recipe: Recipe, labels: LabelSpec, number: int) -> str | None:
    """A traceback, if what an accepted recipe says of its model leads to one."""
    try:
        with within(2):
            encoders: Any = recipe.model.encoders
            build_model(recipe, {name: resolve_encoder(name, value) for name, value in encoders.items()}, labels)
    except TOLD:
        return None
    except BaseException:
        return f"{number}: {traceback.format_exc(limit=-3)}\n{encoders}"
    return None


# ---- data ----

CELLS = [
    "",
    " ",
    "nan",
    "null",
    "-1",
    "0",
    "1e400",
    "inf",
    "true",
    "é" * 50,
    "\0",
    "a,b",
    '"',
    "missing.png",
    "9" * 30,
]
JSON_CELLS = [None, "", 0, -1, 1.5, True, [], {}, ["a"], {"path": "x"}, "missing.png", math.nan, 10**30, "\ud800"]


def write_rows(rng: random.Random, folder: Path, kind: str) -> Path:
    rows: list[dict[str, Any]] = [
        {"image": f"{index % 4}.png", "text": f"the digit {index}", "label": rng.choice(["cat", "dog", "bird"])}
        for index in range(20)
    ]
    for _ in range(rng.randint(0, 4)):
        row = rng.choice(rows)
        row[rng.choice(sorted(row))] = rng.choice(CELLS if kind == "csv" else JSON_CELLS)
    if rng.random() < 0.2:
        column = rng.choice(sorted(rows[0]))
        rows = [{key: value for key, value in row.items() if key != column} for row in rows]
    if rng.random() < 0.1:
        del rng.choice(rows)[rng.choice(sorted(rows[0]))]
    path = folder / f"rows.{kind}"
    if kind == "csv":
        head = list(rows[0])
        lines = [",".join(head), *(",".join(str(row.get(key, "")) for key in head) for row in rows)]
        path.write_bytes("\n".join(lines).encode("utf-8", "replace"))
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))
    if rng.random() < 0.4:
        content = bytearray(path.read_bytes())
        for _ in range(rng.randint(1, 20)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.randint(1, len(content))] if rng.random() < 0.3 else content)
    return path


def test_three_hundred_damaged_files_of_rows(tmp_path: Path) -> None:
    processor = tiny_processor(("image", "text"))
    missed, read = [], 0
    for number in range(300):
        rng = random.Random(number)
        folder = tmp_path / str(number)
        folder.mkdir()
        for index in range(4):
            pixels = np.full((16, 16, 3), 50 * index, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
        if rng.random() < 0.3:
            picture = folder / f"{rng.randrange(4)}.png"
            content = bytearray(picture.read_bytes())
            content[rng.randrange(len(content))] ^= 0xFF
            picture.write_bytes(content[: rng.randint(0, len(content))] if rng.random() < 0.5 else content)
        path = write_rows(rng, folder, rng.choice(["csv", "jsonl"]))
        words = used(lambda path=path: path, processor)  # type: ignore[misc]
        read += words == ""
        if words:
            missed.append(f"{number}: {words}")
    assert not missed, "\n".join(missed)
    assert read > 30


def used(path: Callable[[], Path], processor: Any) -> str | None:
    """`""` if the rows can be trained on, None if a message says why not, else a traceback."""
    try:
        with within(3):
            splits = load_data(str(path()), modalities=["image", "text"])
            labels = LabelSpec.from_dataset(splits["train"])
            rows = labels.encode(splits["train"])
            CrossModalCollator(processor, labels)([rows[index] for index in range(min(4, len(rows)))])
    except TOLD as error:
        return None if str(error) else "an empty message"
    except BaseException:
        return traceback.format_exc(limit=-3)
    return ""
