"""Any subset of a model's modalities in, labels and scores out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from hf_dgl.adapters import load_model
from hf_dgl.data import CrossModalCollator
from hf_dgl.models import CrossModalForSequenceClassification, CrossModalProcessor


class CrossModalPipeline:
    """Labels examples with a fine-tuned model, and says what each modality alone would have answered.

    Args:
        model: On the device that is to be used.
        processor: The model's own.

    Example:

        >>> pipeline = CrossModalPipeline.from_pretrained("outputs/image_text")
        >>> pipeline(image="digit.png", text="an even digit")
        {'label': 'four', 'score': 0.9, 'scores': {...}, 'modalities': {'image': {'label': 'four', 'score': 0.8}, ...}}
        >>> pipeline(text=["an even digit", "an odd digit"])  # no image: fine; two rows: a list of two answers
    """

    def __init__(self, model: CrossModalForSequenceClassification, processor: CrossModalProcessor) -> None:
        self.model = model.eval()
        self.processor = processor
        self.collator = CrossModalCollator(processor)

    @classmethod
    def from_pretrained(
        cls, model_id: str, device: str | torch.device | None = None, **kwargs: Any
    ) -> CrossModalPipeline:
        """Load a model and its processor.

        Args:
            model_id: A folder that `hf-dgl train` wrote (a whole model, or adapters), or a Hub id.
            device: Default: the accelerator if there is one, else the CPU.
            **kwargs: For both `from_pretrained` (`revision`, `token`, ...).
        """
        device = device or torch.accelerator.current_accelerator() or "cpu"
        model = load_model(model_id, **kwargs)
        model.to(device)
        return cls(model, CrossModalProcessor.from_pretrained(model_id, **kwargs))

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities that the model knows."""
        return list(self.processor.modalities)

    def __call__(self, **inputs: Any) -> dict[str, Any] | list[dict[str, Any]]:
        """Label one example, or a batch if lists are given.

        Args:
            **inputs: By modality: an image (PIL or path), a text, an audio (path, or a 1-D float array at the
                processor's sampling rate), or a list of these, with None where a row lacks the modality.

        Returns:
            Per example `label`, `score`, `scores` (label -> probability), and `modalities`: label and score by each
            modality that was given, alone. For a multi-label model `label` is the list of labels with a probability of
            at least one half; for regression there is a `score` only.

        Raises:
            ValueError: on an unknown modality, lists of different lengths, or an example without any modality.
        """
        is_batch = any(isinstance(value, list) for value in inputs.values())
        rows = self._rows({name: value if isinstance(value, list) else [value] for name, value in inputs.items()})
        answers = self._answer(rows)
        return answers if is_batch else answers[0]

    def _rows(self, columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
        for name in columns:
            if name not in self.modalities:
                raise ValueError(f"Unknown modality {name!r}: this model has {self.modalities}.")
        lengths = {name: len(values) for name, values in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"Every modality needs as many entries as the others, got {lengths}.")
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        if not rows or any(all(value is None for value in row.values()) for row in rows):
            raise ValueError(f"Every example needs at least one of the modalities {self.modalities}.")
        return rows

    @torch.no_grad()
    def _answer(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        batch = {name: self._to_device(part) for name, part in self.collator(rows).items() if part is not None}
        fused = self._read(self.model(**batch).logits)
        alone = {name: self._read(self.model(**{name: part}).logits) for name, part in batch.items()}
        for index, (row, answer) in enumerate(zip(rows, fused, strict=True)):
            answer["modalities"] = {
                name: {key: answers[index][key] for key in ("label", "score") if key in answers[index]}
                for name, answers in alone.items()
                if row.get(name) is not None
            }
        return fused

    def _to_device(self, part: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self.model.device) for name, tensor in part.items()}

    def _read(self, logits_BC: torch.Tensor) -> list[dict[str, Any]]:
        """Logits of a batch (B rows, C classes) -> one answer per row."""
        problem_type, names = self.model.config.problem_type, self.model.config.id2label
        if problem_type == "regression":
            return [{"score": value} for value in logits_BC.squeeze(-1).tolist()]
        multi_label = problem_type == "multi_label_classification"
        answers = []
        for row in (logits_BC.sigmoid() if multi_label else logits_BC.softmax(-1)).tolist():
            scores = {names[index]: score for index, score in enumerate(row)}
            best = max(scores, key=scores.__getitem__)
            label = [name for name, score in scores.items() if score >= 0.5] if multi_label else best
            answers.append({"label": label, "score": scores[best], "scores": scores})
        return answers
