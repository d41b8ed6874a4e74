"""BLIP-2 and InstructBLIP above each kind of language model that their checkpoints have: OPT, Vicuna, Flan-T5."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf

from hf_dgl.architectures import disentangle, modalities_of
from tests.architectures.test_matrix import assert_exact, cast, quietly_training
from tests.architectures_tiny import LLAMA, SPECIAL, TINY, ids

T5 = {"model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 64}
T5 |= {**SPECIAL, "dropout_rate": 0.0, "decoder_start_token_id": 0}
CLASSES = ("Blip2ForConditionalGeneration", "Blip2Model", "InstructBlipForConditionalGeneration")


def above(name: str, language: dict[str, Any]) -> Any:
    """The tiny model of a class with another language model, and its batch."""
    like, batch = TINY[name if name in TINY else "Blip2ForConditionalGeneration"]()
    torch.manual_seed(0)
    kind = getattr(tf, name)
    config = like.config.to_dict()
    model = kind(kind.config_class(**{**config, "text_config": language}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.double(), cast(batch, torch.float64)


@pytest.mark.parametrize("name", CLASSES)
def test_a_decoder_of_any_kind(name: str) -> None:
    model, batch = above(name, LLAMA)
    assert_exact(quietly_training(model), modalities_of(model), batch)
    with disentangle(model, modalities_of(model)) as handle:
        handle.check(batch)


@pytest.mark.parametrize("length", [4, None], ids=["shorter", "as long as the prompt"])
@pytest.mark.parametrize("name", CLASSES)
def test_an_encoder_reads_the_prompt_and_a_decoder_writes_the_answer(name: str, length: int | None) -> None:
    """Labels are the decoder's: also where there are as many as tokens of the prompt, they say nothing of these."""
    model, batch = above(name, T5)
    batch["labels"] = ids(length or batch["input_ids"].shape[1])
    modalities = modalities_of(model)
    assert_exact(quietly_training(model), modalities, batch)
    with disentangle(model, modalities) as handle:
        handle.check(batch)
    without_text = modalities["text"].without(batch)["input_ids"]
    assert set(without_text.unique().tolist()) <= {60, SPECIAL["bos_token_id"], SPECIAL["pad_token_id"]}
