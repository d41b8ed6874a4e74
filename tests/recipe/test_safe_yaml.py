"""YAML that is damaged or hostile is refused in one line, within a second."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hf_dgl.recipe.recipe import load_recipe
from hf_dgl.recipe.safe_yaml import parse_yaml

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 1\nlearning_rate: 1\nseed: 2", "the key 'seed' stands twice, in lines 1 and 3"),
        ("encoders:\n  image: {model_type: vit, model_type: bert}", "the key 'model_type' stands twice"),
        ("a: {b: {c: 1, 'c': 2}}", "the key 'c' stands twice"),
        (b"seed: 1 # caf\xe9", "is no text in UTF-8 (byte 13 is 0xe9)"),
        (b"\xff\xfes\x00e\x00", "is no text in UTF-8"),
        (b"\x00\x01", "not valid YAML"),
        ("a: &a [*a]", "an alias contains itself (line 1)"),
        ("a: &a {b: &b {c: *a}}", "an alias contains itself"),
        (LAUGHS, "stands for more than 10,000 values"),
        ("a: " + "[" * 30_000, "opening brackets"),
        ("a: " + "{b: " * 10_000, "opening brackets"),
        ("- " * 20_000, "nested too deeply"),
        ("x" * 10_000_000, "is larger than 64 KB"),
        ("seed: 2024-99-99", "not valid YAML"),
        ("seed: " + "9" * 5000, "not valid YAML"),
        ("? [a]\n: 1", "a key is no word"),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("a: *b", "undefined alias"),
        ("token: hf_" + "a1" * 17 + ": b", "not valid YAML"),
        ("", "expected `key: value` lines, got nothing"),
    ],
    ids=range(20),
)
def test_refused_in_one_line(tmp_path: Path, text: str | bytes, words: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    begun = time.process_time()
    with pytest.raises(ValueError) as caught:
        load_recipe(path)
    assert time.process_time() - begun < 1
    message = str(caught.value)
    assert words in message and message.startswith(str(path)) and "\n" not in message and len(message) < 700
    assert "hf_a1" not in message


def test_what_recipes_use() -> None:
    text = "base: &base {a: 1}\nb: {<<: *base, c: 1e-4}\nd: [*base, *base]\n"
    assert parse_yaml(text, "here") == {
        "base": {"a": 1},
        "b": {"a": 1, "c": "1e-4"},
        "d": [{"a": 1}, {"a": 1}],
    }


def test_a_word_of_the_command_line() -> None:
    with pytest.raises(ValueError, match="--encoders is not valid YAML"):
        load_recipe(None, ["--data", "x.csv", "--encoders", "image={model_type: "])
    with pytest.raises(ValueError, match="--encoders: the key 'model_type' stands twice"):
        load_recipe(None, ["--data", "x.csv", "--encoders", "image={model_type: vit, model_type: bert}"])


def test_a_device_is_no_recipe() -> None:
    with pytest.raises(FileNotFoundError):
        load_recipe("/dev/zero")
