from __future__ import annotations

import copy
import gc
import io
import pickle

import pytest
import torch

from hf_dgl.architectures.attach import disentangle
from hf_dgl.method.engine import handle_on
from tests.training.small import MODALITIES, build, small_model, small_rows


@pytest.mark.parametrize("method", ["dgl", "joint"])
def test_a_new_trainer_takes_over(tmp_path, method):
    model = small_model()
    first = build(tmp_path, model=model, method=method)
    first.train()
    second = build(tmp_path, model=model, method="dgl", max_steps=2)
    assert handle_on(model) is second.disentangled
    second.train()
    assert "loss_image" in second.state.log_history[0]


@pytest.mark.parametrize("trains", [False, True])
def test_a_trainer_that_is_gone_frees_its_model(tmp_path, trains):
    model = small_model()
    trainer = build(tmp_path, model=model, method="dgl")
    if trains:
        trainer.train()
    gc.disable()
    try:
        del trainer
        disentangle(model, MODALITIES).remove()
    finally:
        gc.enable()
    assert handle_on(model) is None
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with disentangle(model, MODALITIES):
        pass


def test_a_handle_of_the_users_own_is_not_taken(tmp_path):
    model = small_model()
    handle = disentangle(model, MODALITIES)
    with pytest.raises(ValueError, match="disentangled already"):
        build(tmp_path, model=model)
    assert handle_on(model) is handle


def test_copies_of_a_trained_model_are_plain(tmp_path):
    trainer = build(tmp_path, method="dgl", eval_dataset=small_rows(4))
    trainer.train()
    trainer.evaluate()
    model, buffer = trainer.model, io.BytesIO()
    torch.save(model, buffer)
    for content in (pickle.dumps(model), pickle._dumps(model), buffer.getvalue()):
        assert b"hf_dgl" not in content
    buffer.seek(0)
    batch = trainer.data_collator(small_rows(4))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(buffer, weights_only=False)):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in twin.modules())
        assert torch.equal(twin.eval()(**batch).logits, model.eval()(**batch).logits)
        build(tmp_path, model=twin, method="dgl", max_steps=1).train()


def test_a_copy_made_during_training_is_plain(tmp_path):
    from transformers import TrainerCallback

    class Average(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            self.copy = copy.deepcopy(model)

    average = Average()
    build(tmp_path, method="dgl", callbacks=[average]).train()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in average.copy.modules())
