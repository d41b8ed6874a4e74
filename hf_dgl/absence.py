"""How known models are run without one of their modalities: functions on the arguments of the model's forward.

Zeros in the place of features are a poor absence in an attention fusion: layer norms and cross-attention refill the
empty stream with something that the frozen fusion was never trained on. So tokens are dropped where a model allows it;
where modalities share one sequence, their tokens are closed in the attention mask. `B`: batch, `L`: sequence length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

Call = dict[str, Any]
Hide = Callable[[Call], Call]
Vary = Callable[[Call], Call]
Tokens = Callable[[Call], torch.Tensor]
"""Which positions of the sequence hold a modality: bool [B, L]."""


def first_token_only(*names: str, mask: str = "attention_mask") -> Hide:
    """The empty text: of each `[B, L]` argument in `names` the first attended token is left (`[CLS]`, `<s>`).

    Example:

        >>> first_token_only("input_ids")({"input_ids": torch.tensor([[101, 7, 102]])})
        {'input_ids': tensor([[101]])}
    """

    def hide(call: Call) -> Call:
        first: Any = 0
        if call.get(mask) is not None:  # padding may stand on the left
            first = call[mask].long().argmax(dim=1, keepdim=True)
        for name in {*names, mask}:
            if call.get(name) is not None:
                BL = call[name]
                call[name] = BL[:, :1] if isinstance(first, int) else BL.gather(1, first)
        return call

    return hide


def other_words(*names: str) -> Vary:
    """For the leak check: the tokens after the first in reversed order. The first is `[CLS]` or `<s>` in every text, and
    [`first_token_only`] counts on it."""

    def vary(call: Call) -> Call:
        changed = dict(call)
        for name in names:
            if call.get(name) is not None:
                changed[name] = torch.cat([call[name][:, :1], call[name][:, 1:].flip(0, 1)], dim=1)
        return changed

    return vary


def no_tokens(*names: str) -> Hide:
    """Every `[B, L, ...]` argument in `names` is cut to length 0: an attention over nothing adds nothing.

    Example:

        >>> no_tokens("visual_feats")({"visual_feats": torch.ones(2, 36, 2048)})["visual_feats"].shape
        torch.Size([2, 0, 2048])
    """

    def hide(call: Call) -> Call:
        return {key: value[:, :0] if key in names and value is not None else value for key, value in call.items()}

    return hide


def closed(tokens: Tokens, omit: tuple[str, ...] = (), mask: str = "attention_mask", ids: str = "input_ids") -> Hide:
    """The positions of a modality in a shared sequence are closed in the attention mask, and `omit` is left out.

    For the image tokens among text: `closed(image_tokens(32000), omit=("pixel_values",))`.
    """

    def hide(call: Call) -> Call:
        call[mask] = _mask_of(call, mask, ids) * ~tokens(call)
        return {key: value for key, value in call.items() if key not in omit}

    return hide


def empty_text(tokens: Tokens, token_id: int, mask: str = "attention_mask", ids: str = "input_ids") -> Hide:
    """The empty text inside a shared sequence: all its tokens become `token_id` (`<bos>`), and only the first is
    attended.

    The length of the sequence stays, so read-outs ("the last token") find their place.
    """

    def hide(call: Call) -> Call:
        attended = _mask_of(call, mask, ids)
        text = tokens(call) & attended.bool()
        first = text & (text.cumsum(1) == 1)
        call[ids] = call[ids].masked_fill(text, token_id)
        call[mask] = attended * (~text | first)
        return call

    return hide


def other_text(tokens: Tokens, ids: str = "input_ids", mask: str = "attention_mask") -> Vary:
    """For the leak check: the text tokens of the batch in reversed order, all else in its place."""

    def vary(call: Call) -> Call:
        text = tokens(call) & _mask_of(call, mask, ids).bool()
        varied = call[ids].clone()
        varied[text] = call[ids][text].flip(0)
        return {**call, ids: varied}

    return vary


def image_tokens(token_id: int, ids: str = "input_ids") -> Tokens:
    """The places in `input_ids` where image features are put."""
    return lambda call: call[ids] == token_id


def text_tokens(*placeholders: int, ids: str = "input_ids") -> Tokens:
    """The tokens of the text. With token labels (`[B, L]`) only the prompt: an answer, which is what is predicted,
    stays."""

    def tokens(call: Call) -> torch.Tensor:
        text = torch.ones_like(call[ids], dtype=torch.bool)
        for token_id in placeholders:
            text &= call[ids] != token_id
        labels = call.get("labels")
        if isinstance(labels, torch.Tensor) and labels.shape == call[ids].shape:
            text &= labels == -100
        return text

    return tokens


def _mask_of(call: Call, mask: str, ids: str) -> torch.Tensor:
    return torch.ones_like(call[ids]) if call.get(mask) is None else call[mask]
