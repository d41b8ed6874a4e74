"""Rows of a data set to the batch that a multimodal checkpoint takes: flat tensors, made by its own processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from .collator import CrossModalCollator, name_row
from .columns import LABEL_COLUMN
from .limits import text_limit

IGNORED = -100
_ARGUMENTS = {"image": "images", "text": "text", "audio": "audio", "video": "videos"}
_PLACES_ITSELF = ("Blip2Processor", "InstructBlipProcessor", "Florence2Processor")
"""Processors that put the image's placeholder into the text themselves."""


def answers_apart(config: Any) -> bool:
    """Whether a model writes its answer in a decoder of its own, rather than behind the prompt.

    Example:

        >>> answers_apart(Florence2Config()), answers_apart(LlavaConfig())
        (True, False)
    """
    above_t5 = not getattr(config, "use_decoder_only_language_model", True)  # all that InstructBLIP's config says
    return bool(config.is_encoder_decoder or above_t5 or config.model_type == "blip")


@dataclass
class NativeCollator(CrossModalCollator):
    """Decodes rows as [`CrossModalCollator`] does, and hands them to a checkpoint's own processor.

    Text is cut off where the model has no more positions. Where the processor wants a placeholder for the image in the
    text (ModernVBert, Gemma 3, LLaVA), it is put in front of it; a model that writes text gets the processor's chat
    template, if there is one.

    Args:
        processor: A `NativeProcessor`.
        labels: What the labels mean; None for models that write text, or for prediction.
        max_audio_seconds: As in [`CrossModalCollator`].

    Returns:
        What the processor returns (`pixel_values`, `input_ids`, ...), and
        - `labels`: LongTensor[B], FloatTensor[B, num_labels] (multi-label) or FloatTensor[B] (regression),
        - for a model that writes text `labels`: LongTensor[B, L], the answer's tokens; -100 on everything else.

    Raises:
        ValueError: a row that lacks a modality (names it), or has no label; unreadable files.

    Example:
        >>> batch = NativeCollator(processor, LabelSpec.from_config(model.config))(rows)
        >>> model(**batch).loss
    """

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        if not set(self.processor.modalities) & {name for row in rows for name in row}:
            raise ValueError(self._nothing_found(rows))
        columns = {name: self._column(name, rows) for name in self.processor.modalities}
        if self.processor.head == "text":
            return self._with_answers(columns, rows)
        if "text" in columns and (mark := self._placeholders()):
            columns["text"] = [mark + text for text in columns["text"]]
        batch = self._process(columns)
        if self.labels is not None and any(LABEL_COLUMN in row for row in rows):
            batch["labels"] = self._label_tensor(rows)
        return batch

    def _column(self, name: str, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
        values = [self._decode(name, row, position) for position, row in enumerate(rows)]
        for position, (row, value) in enumerate(zip(rows, values, strict=True)):
            if value is None:
                raise ValueError(
                    f"{name_row(row, position)} has no {name!r}, and {self.processor.model_class.__name__} reads all "
                    "of its modalities in every row. Leave such rows out (--on_error skip); a model built from "
                    "`encoders` can do without."
                )
        return values

    def _process(self, columns: Mapping[str, list[Any]], add_special_tokens: bool = True) -> dict[str, Any]:
        """The processor's batch; arrays of features become tensors by the name of their column."""
        batch: dict[str, Any] = {}
        arguments: dict[str, Any] = {}
        for name, values in columns.items():
            if hasattr(self.processor.processors[name], "read_value"):
                batch[name] = _stack(name, values)
            else:
                arguments[_ARGUMENTS[name]] = values
        upstream = self.processor.processor
        text = {"padding": True, "truncation": True, "max_length": text_limit(self.processor.processors.get("text"))}
        if text["max_length"] is None:
            text = {"padding": True}
        if not add_special_tokens:
            text["add_special_tokens"] = False
        if upstream is self.processor.processors.get("text"):  # a tokenizer alone
            return {**upstream(arguments["text"], return_tensors="pt", **text), **batch}
        if "images" in arguments and self._placeholders():
            arguments["images"] = [[image] for image in arguments["images"]]
        audio = {"sampling_rate": self.processor.sampling_rate("audio"), "padding": True} if "audio" in columns else {}
        kwargs = {"text_kwargs": text, **({"audio_kwargs": audio} if audio else {})}
        return {**upstream(**arguments, return_tensors="pt", **kwargs), **batch}

    def _placeholders(self) -> str:
        """What stands for image and audio in the text; "" where the processor wants nothing."""
        upstream = self.processor.processor
        if type(upstream).__name__ in _PLACES_ITSELF:
            return ""
        marks = [getattr(upstream, f"{name}_token", None) for name in self.processor.modalities if name != "text"]
        return "".join(mark for mark in marks if isinstance(mark, str))

    # ---- models that write text -----------------------------------------------------------------------------------

    def _with_answers(self, columns: dict[str, list[Any]], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        config, tokenizer = self.processor.config, self.processor.processors["text"]
        is_continued = not answers_apart(config)
        if config.model_type != "blip":
            columns["text"] = [self._prompt(text, is_continued) for text in columns["text"]]
        start = tokenizer.bos_token  # a chat template may have written it already
        batch = self._process(columns, not (start and all(text.startswith(start) for text in columns["text"])))
        if not any(LABEL_COLUMN in row for row in rows):
            return batch
        answers = [self._answer(row, position) for position, row in enumerate(rows)]
        if is_continued:
            ends = [
                [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id] for text in answers
            ]
            return _continued(batch, ends, tokenizer.pad_token_id or 0)
        tokens = tokenizer(answers, padding=True, truncation=True, return_tensors="pt")
        ids, mask = tokens["input_ids"], tokens["attention_mask"]
        if config.model_type == "blip":  # its decoder starts with a token of its own, and shifts the labels itself
            ids[:, 0] = config.text_config.bos_token_id
            batch |= {"decoder_input_ids": ids, "decoder_attention_mask": mask}
        batch["labels"] = ids.masked_fill(mask == 0, IGNORED)
        return batch

    def _prompt(self, text: str, is_continued: bool) -> str:
        upstream = self.processor.processor
        if is_continued and getattr(upstream, "chat_template", None):
            media = [{"type": name} for name in self.processor.modalities if name != "text"]
            message = {"role": "user", "content": [*media, {"type": "text", "text": text}]}
            return str(upstream.apply_chat_template([message], add_generation_prompt=True, tokenize=False))
        return self._placeholders() + text

    def _answer(self, row: Mapping[str, Any], position: int) -> str:
        value = row.get(LABEL_COLUMN)
        if isinstance(value, (list, tuple)) and value and all(isinstance(text, str) for text in value):
            value = max(value, key=value.count)  # several people's answers: what most of them said
        if not isinstance(value, (str, Number)) or value != value:
            raise ValueError(
                f"{name_row(row, position)}: {self.processor.model_class.__name__} learns to write its labels, so "
                f"each is a text (or a list of texts, of several people); got {value!r:.80}."
            )
        return str(value)


def _stack(name: str, arrays: Sequence[np.ndarray]) -> torch.Tensor:
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise ValueError(
            f"{name!r}: the arrays of one batch differ in shape ({sorted(shapes)[:3]}). Every image needs as many "
            "regions as the others (36, as a rule)."
        )
    return torch.from_numpy(np.stack(arrays))


def _continued(batch: Mapping[str, Any], ends: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, Any]:
    """A batch of prompts, with answers behind them (padding on the right); labels only on the answers."""
    mask = batch["attention_mask"].bool()
    size = tuple(mask.shape)
    continued: dict[str, Any] = {}
    for name, value in batch.items():
        if not isinstance(value, torch.Tensor) or tuple(value.shape) != size:
            continued[name] = value
            continue
        fill = {"input_ids": None, "attention_mask": 1}.get(name, 0)  # token types: the answer is text
        rows = [
            torch.cat([row[keep], row.new_tensor(end) if fill is None else row.new_full((len(end),), fill)])
            for row, keep, end in zip(value, mask, ends, strict=True)
        ]
        continued[name] = pad_sequence(rows, batch_first=True, padding_value=pad_token_id if fill is None else 0)
    lengths = mask.sum(1).tolist()
    labels = [torch.tensor([IGNORED] * n + list(end)) for n, end in zip(lengths, ends, strict=True)]
    return {**continued, "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED)}
