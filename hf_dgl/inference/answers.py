"""Answers that a model writes: with all modalities, and with each alone.

"Alone" is what the model's row of [`ARCHITECTURES`] says it is: the others left out, closed to attention or silent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from hf_dgl.architectures import modalities_of
from hf_dgl.data.native_collator import answers_apart
from hf_dgl.method.modalities import Partition, resolve
from hf_dgl.method.outputs import map_tensors

FUSED = "fused"
MAX_NEW_TOKENS = 64
"""Of an answer, where the model's own `generation_config` names no `max_new_tokens`."""


def write_answers(
    model: Any, collator: Any, rows: Sequence[Mapping[str, Any]], batch_size: int, partition: str | None = None
) -> dict[str, list[str]]:
    """Lets a model that writes text answer rows: greedily, in eval mode.

    Args:
        model: Of a known class with a language model's head, or a PEFT model of one.
        collator: A `NativeCollator`.
        rows: Of a data set, without labels (a label would be put behind the prompt).
        batch_size: Of one `generate`.
        partition: As in [`modalities_of`].

    Returns:
        `fused`, and each modality's name -> the answers, in order.

    Example:

        >>> write_answers(model, NativeCollator(processor), rows, batch_size=8)["fused"]
        ['two', 'a red car']
    """
    found = resolve(model, modalities_of(model, partition))
    names = [FUSED, *found.modalities]
    answers: dict[str, list[str]] = {name: [] for name in names}
    tokenizer = collator.processor.processors["text"]
    was_training = model.training
    model.eval()
    try:
        with _padded_left(tokenizer):
            for start in range(0, len(rows), batch_size):
                batch = _on_device(
                    collator([rows[i] for i in range(start, min(start + batch_size, len(rows)))]), model
                )
                for name in names:
                    written = _write(model, found, batch, None if name == FUSED else name)
                    answers[name] += tokenizer.batch_decode(written, skip_special_tokens=True)
    finally:
        model.train(was_training)
    return {name: [text.strip() for text in texts] for name, texts in answers.items()}


def _write(model: Any, partition: Partition, batch: Mapping[str, Any], alone: str | None) -> torch.Tensor:
    """The tokens of the answers, without the prompts."""
    call = dict(batch)
    absent = [] if alone is None else [name for name in partition.modalities if name != alone]
    for name in absent:
        call = partition.modalities[name].without(call)
    prompt = call["input_ids"]
    length = prompt.shape[1]
    with torch.no_grad(), _without(partition, absent):
        written = model.generate(**call, do_sample=False, max_new_tokens=_longest(model, length))
    is_continued = written.shape[1] >= length and torch.equal(written[:, :length], prompt)
    return written[:, length:] if is_continued else written


def _longest(model: Any, prompt: int) -> int:
    """How many tokens an answer may have: no more than the model has positions for."""
    limit = int(getattr(model.generation_config, "max_new_tokens", None) or MAX_NEW_TOKENS)
    text = model.config.get_text_config(decoder=True)
    positions = getattr(text, "max_position_embeddings", None)
    if not isinstance(positions, int) or positions <= 0:
        return limit
    taken = 1 if answers_apart(model.config) else prompt  # else the answer has positions of its own
    return max(1, min(limit, positions - taken))


@contextmanager
def _without(partition: Partition, absent: Sequence[str]) -> Iterator[None]:
    """The features of absent modalities replaced, where their row says so (elsewhere their inputs are gone)."""
    with ExitStack() as stack:
        for name in absent:
            modality = partition.modalities[name]
            if modality.absent != "omit":
                empty = _zeros if modality.absent == "zero" else modality.absent
                for module in partition.encoders[name].values():
                    stack.callback(_replace(module, empty).remove)
            for module in partition.silent[name]:
                stack.callback(_replace(module, _zeros).remove)
        yield


def _replace(module: nn.Module, function: Any) -> Any:
    return module.register_forward_hook(lambda module, args, output: function(output))


def _zeros(output: Any) -> Any:
    return map_tensors(lambda tensor: torch.zeros_like(tensor) if tensor.is_floating_point() else tensor, output)


@contextmanager
def _padded_left(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """A prompt ends where the answer begins."""
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    try:
        yield
    finally:
        tokenizer.padding_side = side


def _on_device(batch: Mapping[str, Any], model: Any) -> dict[str, Any]:
    return {key: value.to(model.device) if isinstance(value, torch.Tensor) else value for key, value in batch.items()}
