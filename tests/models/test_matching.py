from __future__ import annotations

import pytest
import torch
from transformers import Blip2ForImageTextRetrieval, BlipForImageTextRetrieval

from hf_dgl.models.matching import Blip2ForImageTextMatching, BlipForImageTextMatching
from tests.architectures_tiny import TINY
from tests.devices import put

pytestmark = pytest.mark.device

PAIRS = [
    (BlipForImageTextMatching, BlipForImageTextRetrieval, {"use_itm_head": True}, "itm_score"),
    (
        Blip2ForImageTextMatching,
        Blip2ForImageTextRetrieval,
        {"use_image_text_matching_head": True},
        "logits_per_image",
    ),
]
both = pytest.mark.parametrize("ours, upstream, switch, score", PAIRS, ids=["blip", "blip2"])


def built(ours):
    model, batch = TINY[ours.__name__]()
    labels = batch.pop("labels")
    return model, batch, labels


@both
def test_logits_are_the_pretrained_heads_and_the_loss_is_cross_entropy(ours, upstream, switch, score):
    model, batch, labels = built(ours)
    plain = put(upstream(model.config).eval())
    plain.load_state_dict(model.state_dict())
    output = model(**batch, labels=labels)
    assert torch.equal(output.logits, plain(**batch, **switch)[score])
    assert torch.equal(output.loss, torch.nn.functional.cross_entropy(output.logits, labels))
    assert model(**batch).loss is None


@both
def test_an_original_checkpoint_loads_in_full_and_back(ours, upstream, switch, score, tmp_path):
    model, batch, labels = built(ours)
    original = put(upstream(model.config).eval())
    original.load_state_dict(model.state_dict())
    original.save_pretrained(tmp_path / "original")
    loaded, told = ours.from_pretrained(tmp_path / "original", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    assert torch.equal(put(loaded.eval())(**batch).logits, model(**batch).logits)
    loaded.save_pretrained(tmp_path / "ours")
    back, told = upstream.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not told["missing_keys"]
    assert torch.equal(put(back.eval())(**batch, **switch)[score], model(**batch).logits)


@both
def test_every_trainable_parameter_is_trained(ours, upstream, switch, score):
    """DDP waits for the gradient of each."""
    model, batch, labels = built(ours)
    model(**batch, labels=labels).loss.backward()
    without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    # Behind BLIP-2's last attention only the queries are read: upstream's layers for words have no use there.
    last = f"encoder.layer.{model.config.get_text_config().num_hidden_layers - 1}."
    assert all(ours is Blip2ForImageTextMatching and last in name for name in without), without
    assert not any(
        p.requires_grad for name, p in model.named_parameters() if "_proj" in name and "vision_model" not in name
    )


@both
def test_what_can_be_left_out(ours, upstream, switch, score):
    model, batch, _ = built(ours)
    full = {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}
    assert torch.equal(model(**full).logits, model(**{**full, "attention_mask": None}).logits)
