"""Granite Speech embeds its text twice where there is a sound (the first time for nothing), and once without one.

Its text once got no gradient, silently: the second call was answered with the output of the dead first one.
"""

from __future__ import annotations

import torch
import transformers

from hf_dgl import disentangle
from hf_dgl.method.absence import closed, empty_text, image_tokens, prompt_tokens
from tests.architectures.test_matrix import assert_exact, quietly_training
from tests.architectures_tiny import BERT, LLAMA, B, answers, with_places

PLACE = 60


def build():
    encoder = {
        **{"context_size": 8, "conv_kernel_size": 3, "dim_head": 8, "dropout": 0.0, "hidden_dim": 16, "input_dim": 8},
        **{"max_pos_emb": 16, "num_heads": 2, "num_layers": 2, "output_dim": 6, "feedforward_mult": 2},
    }
    config = transformers.GraniteSpeechConfig(
        encoder_config=encoder,
        projector_config={**BERT, "encoder_hidden_size": 16, "cross_attention_frequency": 1},
        text_config={**LLAMA, "model_type": "granite"},
        audio_token_index=PLACE,
        has_lora_adapter=False,
        window_size=4,
        downsample_rate=2,
        tie_word_embeddings=False,
    )
    batch = {**answers(with_places(PLACE, 4)), "input_features": torch.randn(B, 8, 8).double()}
    return transformers.GraniteSpeechForConditionalGeneration(config).double(), batch


def declared():
    sound = ("input_features",)
    return {
        "audio": {
            "inputs": sound,
            "encoder": ["model.encoder", "model.projector"],
            "absent": "omit",
            "hide": closed(image_tokens(PLACE), omit=sound),
        },
        "text": {
            "inputs": ["input_ids"],
            "encoder": ["model.language_model.embed_tokens"],
            "absent": "omit",
            "hide": empty_text(prompt_tokens(PLACE), 1),
        },
    }


def test_the_text_gets_its_gradient():
    model, batch = build()
    assert_exact(quietly_training(model), declared(), batch)
    with disentangle(model, declared()) as handle:
        model(**batch)["loss"].backward()
        assert float(model.model.language_model.embed_tokens.weight.grad.abs().max()) > 1e-3
        assert "is called 2 times with all modalities, and 1 times without the others" in handle.explain()
        assert handle.cuts["audio"].reuse
