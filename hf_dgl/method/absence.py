"""How known models are run without one of their modalities: functions on the arguments of the model's forward.

Zeros in the place of features are a poor absence in an attention fusion: layer norms and cross-attention refill the
empty stream with something that the frozen fusion was never trained on. So tokens are dropped where a model allows it;
where modalities share one sequence, their tokens are closed in the attention mask. `B`: batch, `L`: sequence length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .outputs import map_tensors

Call = dict[str, Any]
Hide = Callable[[Call], Call]
Vary = Callable[[Call], Call]
Tokens = Callable[[Call], torch.Tensor]
"""Which positions of the sequence hold a modality: bool [B, L]."""


def first_token_only(*names: str, mask: str = "attention_mask", and_last: bool = False) -> Hide:
    """The empty text: of each `[B, L, ...]` argument in `names` the first attended token is left (`[CLS]`, `<s>`).

    Args:
        names: Arguments with one entry per token.
        mask: The text's attention mask, which is cut like them.
        and_last: Keep the last attended token too (`[CLS] [SEP]`), for models that count back from the text's end.

    Example:

        >>> first_token_only("input_ids")({"input_ids": torch.tensor([[101, 7, 102]])})
        {'input_ids': tensor([[101]])}
    """

    def hide(call: Call) -> Call:
        present = [name for name in {*names, mask} if call.get(name) is not None]
        length = call[present[0]].shape[1]
        attended = call.get(mask)
        if attended is None:
            attended = call[present[0]].new_ones(call[present[0]].shape[:2], dtype=torch.long)
        places = [attended.long().argmax(dim=1)]  # padding may stand on the left
        if and_last:
            places.append(length - 1 - attended.long().flip(1).argmax(dim=1))
        rows = torch.arange(len(attended), device=attended.device)[:, None]
        for name in present:
            call[name] = call[name][rows, torch.stack(places, dim=1)]
        return call

    return hide


def other_words(*names: str) -> Vary:
    """For the leak check: the tokens (`[B, L, ...]`) after the first in reversed order. The first is `[CLS]` or `<s>`
    in every text, and [`first_token_only`] counts on it."""

    def vary(call: Call) -> Call:
        changed = dict(call)
        for name in names:
            if call.get(name) is not None:
                changed[name] = torch.cat([call[name][:, :1], call[name][:, 1:].flip(0, 1)], dim=1)
        return changed

    return vary


def no_tokens(*names: str, keep: int = 0) -> Hide:
    """Every `[B, L, ...]` argument in `names` is cut to length `keep`: an attention over nothing adds nothing.

    Example:

        >>> no_tokens("visual_feats")({"visual_feats": torch.ones(2, 36, 2048)})["visual_feats"].shape
        torch.Size([2, 0, 2048])
    """

    def hide(call: Call) -> Call:
        return {key: value[:, :keep] if key in names and value is not None else value for key, value in call.items()}

    return hide


def no_features(output: Any) -> Any:
    """For `Modality(absent=...)`: the encoder's output `[B, L, ...]` with length 0."""
    return map_tensors(lambda tensor: tensor[:, :0], output)


def in_turn(*steps: Callable[[Call], Call]) -> Callable[[Call], Call]:
    """Several changes of the arguments, one after the other."""

    def run(call: Call) -> Call:
        for step in steps:
            call = step(dict(call))
        return call

    return run


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
    """All tokens but the placeholders."""

    def tokens(call: Call) -> torch.Tensor:
        text = torch.ones_like(call[ids], dtype=torch.bool)
        for token_id in placeholders:
            text &= call[ids] != token_id
        return text

    return tokens


def placeholders(*token_ids: int, ids: str = "input_ids") -> Tokens:
    """The places of several kinds of features (images and videos): all that [`text_tokens`] leaves out."""
    text = text_tokens(*token_ids, ids=ids)
    return lambda call: ~text(call)


def framed(tokens: Tokens) -> Tokens:
    """The tokens and one more on each side of them, for a medium that always has a token of its begin and one of its
    end.

    Example:

        >>> ids = torch.tensor([[5, 8, 60, 60, 9, 6]])
        >>> framed(image_tokens(60))({"input_ids": ids}).long()
        tensor([[0, 1, 1, 1, 1, 0]])
    """

    def wider(call: Call) -> torch.Tensor:
        found = tokens(call)
        wide = found.clone()
        wide[:, 1:] |= found[:, :-1]
        wide[:, :-1] |= found[:, 1:]
        return wide

    return wider


def after_first(tokens: Tokens) -> Tokens:
    """The tokens but the first of each row, which an empty text keeps."""

    def rest(call: Call) -> torch.Tensor:
        found = tokens(call)
        return found & (found.cumsum(1) > 1)

    return rest


def words_shown(call: Call) -> torch.Tensor:
    """The text behind its first attended token (`[CLS]`), without the places whose words are to be predicted (where
    `labels`, one per token and perhaps more for what stands behind the text, are not -100)."""
    attended = _mask_of(call, "attention_mask", "input_ids").bool()
    behind = attended & (attended.cumsum(1) > 1)
    labels = call.get("labels")
    return behind if labels is None else behind & (labels[:, : behind.shape[1]] == -100)


def all_words(call: Call) -> torch.Tensor:
    """The text behind its first attended token (`[CLS]`)."""
    return words_shown({key: value for key, value in call.items() if key != "labels"})


def only_the_first(tokens: Tokens, pad: int, mask: str = "attention_mask", ids: str = "input_ids") -> Hide:
    """The empty text where each place has a label, so none can be dropped: `tokens` become padding, and closed."""

    def hide(call: Call) -> Call:
        hidden = tokens(call)
        return closed(lambda _: hidden, mask=mask, ids=ids)({**call, ids: call[ids].masked_fill(hidden, pad)})

    return hide


def inner_tokens(call: Call) -> torch.Tensor:
    """The text between its first and its last attended token (`[CLS]` and `[SEP]`)."""
    attended = _mask_of(call, "attention_mask", "input_ids").bool()
    behind = attended.flip(1).cumsum(1).flip(1)
    return attended & (attended.cumsum(1) > 1) & (behind > 1)


def prompt_tokens(*placeholders: int, ids: str = "input_ids") -> Tokens:
    """The text without the answer, where `labels` say for each token (`[B, L]`) whether it is to be predicted (not
    -100).

    The answer stays when the text is absent: it is what is predicted.
    """
    text = text_tokens(*placeholders, ids=ids)

    def tokens(call: Call) -> torch.Tensor:
        labels = call.get("labels")
        return text(call) if labels is None else text(call) & (labels == -100)

    return tokens


def _mask_of(call: Call, mask: str, ids: str) -> torch.Tensor:
    return torch.ones_like(call[ids]) if call.get(mask) is None else call[mask]
