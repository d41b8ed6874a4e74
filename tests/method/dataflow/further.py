"""Tiny models of classes that `auto` meets and the table has no builder for: hard cases, and rightly refused ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as tf
from torch import nn

from tests.architectures_tiny import LLAMA, answers, image, with_places

FURTHER: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {}


def further(build: Callable[[], tuple[nn.Module, dict[str, Any]]]) -> Any:
    """Registers a builder under the class of its model; seeded, perturbed, in eval mode."""

    def seeded() -> tuple[nn.Module, dict[str, Any]]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, batch = build()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
        return model.float().eval(), batch

    FURTHER[build.__name__] = seeded
    return build


@further
def ChameleonForConditionalGeneration() -> Any:
    """Words and the codes of its images have one table."""
    vq = {"embed_dim": 16, "num_embeddings": 3, "latent_channels": 16, "resolution": 16, "base_channels": 32}
    names = {f"IMGIMG{code}Z": 61 + number for number, code in enumerate("ABC")}
    config = tf.ChameleonConfig(
        **{key: value for key, value in LLAMA.items() if key != "model_type"},
        vq_config={**vq, "channel_multiplier": [1, 1], "num_res_blocks": 1, "attn_resolutions": []},
        vocabulary_map={"<image>": 60, **names},
    )
    return tf.ChameleonForConditionalGeneration(config), {**answers(with_places(60, 64)), **image()}
