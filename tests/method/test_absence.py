from __future__ import annotations

import torch

from hf_dgl.method.absence import (
    all_words,
    closed,
    empty_text,
    first_token_only,
    framed,
    image_tokens,
    in_turn,
    no_features,
    no_tokens,
    only_the_first,
    other_text,
    other_words,
    prompt_tokens,
    text_tokens,
    words_shown,
)
from hf_dgl.method.modalities import Modality

IMAGE, BOS, PAD = 9, 1, 0
SHARED = {
    "input_ids": torch.tensor([[1, 9, 9, 5, 6, 0], [1, 9, 9, 7, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0]]),
}


def test_the_empty_text_is_the_first_attended_token():
    right = {"input_ids": torch.tensor([[1, 5, 0]]), "attention_mask": torch.tensor([[1, 1, 0]]), "pixels": "kept"}
    left = {"input_ids": torch.tensor([[0, 1, 5]]), "attention_mask": torch.tensor([[0, 1, 1]])}
    hide = first_token_only("input_ids")
    assert hide(dict(right))["input_ids"].tolist() == [[1]]
    assert hide(dict(right))["attention_mask"].tolist() == [[1]]
    assert hide(dict(right))["pixels"] == "kept"
    assert hide(dict(left))["input_ids"].tolist() == [[1]]
    assert hide({"input_ids": torch.tensor([[1, 5]])})["input_ids"].tolist() == [[1]]  # without a mask


def test_other_words_keep_the_first_token():
    varied = other_words("input_ids")({"input_ids": torch.tensor([[1, 5, 6], [1, 7, 8]])})
    assert varied["input_ids"].tolist() == [[1, 8, 7], [1, 6, 5]]


def test_image_tokens_are_closed_and_the_image_is_left_out():
    hidden = closed(image_tokens(IMAGE), omit=("pixel_values",))({**SHARED, "pixel_values": torch.ones(2)})
    assert "pixel_values" not in hidden
    assert hidden["attention_mask"].tolist() == [[1, 0, 0, 1, 1, 0], [1, 0, 0, 1, 0, 0]]


def test_the_empty_text_in_a_shared_sequence_says_nothing_of_the_text():
    hide = empty_text(text_tokens(IMAGE), BOS)
    hidden = hide(dict(SHARED))
    assert hidden["input_ids"].tolist() == [[1, 9, 9, 1, 1, 0], [1, 9, 9, 1, 0, 0]]  # padding stays padding
    assert hidden["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    varied = hide(other_text(text_tokens(IMAGE))(dict(SHARED)))
    assert torch.equal(varied["input_ids"], hidden["input_ids"])


def test_an_answer_is_no_part_of_the_prompt():
    labels = torch.tensor([[-100, -100, -100, -100, 6, -100], [-100, -100, -100, 7, -100, -100]])
    text = prompt_tokens(IMAGE)({**SHARED, "labels": labels})
    assert text.tolist() == [[True, False, False, True, False, True], [True, False, False, False, True, True]]
    assert text_tokens(IMAGE)({**SHARED, "labels": labels})[0, 4]  # of a classifier: a shape that matches by chance


def test_the_empty_text_may_keep_its_end_and_what_lies_beside_the_tokens():
    call = {"input_ids": torch.tensor([[1, 5, 2, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 0]])}
    call["bbox"] = torch.arange(16).view(1, 4, 4)
    hidden = first_token_only("input_ids", "bbox", and_last=True)(call)
    assert hidden["input_ids"].tolist() == [[1, 2]]
    assert hidden["bbox"].tolist() == [[[0, 1, 2, 3], [8, 9, 10, 11]]]


def test_what_is_cut_to_nothing():
    assert no_tokens("a", keep=1)({"a": torch.ones(2, 3, 4), "b": None})["a"].shape == (2, 1, 4)
    assert no_features((torch.ones(2, 3, 4),))[0].shape == (2, 0, 4)
    given = {"a": torch.ones(2, 3), "b": torch.ones(2, 3)}
    hidden = in_turn(no_tokens("a"), no_tokens("b", keep=2))(given)
    assert (hidden["a"].shape, hidden["b"].shape, given["a"].shape) == ((2, 0), (2, 2), (2, 3))


def test_the_given_arguments_are_left_alone():
    before = {key: value.clone() for key, value in SHARED.items()}
    modality = Modality(encoder=["x"], hide=empty_text(text_tokens(IMAGE), BOS))
    call = dict(SHARED)
    modality.without(call)
    other_text(text_tokens(IMAGE))(call)
    assert all(torch.equal(call[key], before[key]) for key in before)


def test_what_is_omitted_without_a_function():
    assert Modality(inputs=["a", "b"], encoder=["x"], absent="omit").without({"a": 1, "c": 2}) == {"c": 2}
    assert Modality(inputs=["a"], encoder=["x"]).without({"a": 1}) == {"a": 1}


def test_what_stands_around_a_medium_goes_with_it():
    ids = torch.tensor([[5, 8, 60, 60, 9, 6], [60, 9, 6, 8, 60, 9]])
    assert framed(image_tokens(60))({"input_ids": ids}).long().tolist() == [[0, 1, 1, 1, 1, 0], [1, 1, 0, 1, 1, 1]]


def test_of_a_text_with_labels_the_first_token_and_the_masked_places_stay():
    """Right- and left-padded; a label more per row is of what stands behind the text."""
    call = {
        "input_ids": torch.tensor([[1, 5, 4, 6, 0], [0, 1, 4, 7, 8]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 0], [0, 1, 1, 1, 1]]),
        "labels": torch.tensor([[-100, -100, 9, -100, -100, 3], [-100, -100, 9, -100, -100, 3]]),
    }
    hidden = only_the_first(words_shown, PAD)(dict(call))
    assert hidden["input_ids"].tolist() == [[1, 0, 4, 0, 0], [0, 1, 4, 0, 0]]
    assert hidden["attention_mask"].tolist() == [[1, 0, 1, 0, 0], [0, 1, 1, 0, 0]]
    assert only_the_first(all_words, PAD)(dict(call))["input_ids"].tolist() == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]]
    assert hidden["labels"] is call["labels"]
