"""The model card that goes with a fine-tuned model (`README.md` on the Hub)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_dgl.models.encoders import encoder_class
from hf_dgl.results import HEADLINES, results_table

if TYPE_CHECKING:
    from hf_dgl.trainer import DGLTrainer

_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
_EXAMPLES = {"pixel_values": '"photo.png"', "input_ids": '"a text"'}


def create_model_card(
    trainer: DGLTrainer,
    model_name: str | None = None,
    language: str | None = None,
    license: str | None = None,
    tags: str | Sequence[str] | None = None,
    dataset: str | None = None,
) -> ModelCard:
    """The card of a trainer's model. Results and recipe are those in its `output_dir`, if [`finetune`] put them there.

    Args:
        trainer: Its model, arguments and `output_dir` (`metrics.json`, `recipe.yaml`) are described.
        model_name: Default: the name of `output_dir`, or of the repository on the Hub.
        language, license, tags: As in the card's metadata; tags are added to ours.
        dataset: What the model was trained on. Default: the recipe's `dataset_name`.

    Returns:
        A card whose `str()` is the README, with a `model-index` that holds every result of the test split.

    Example:

        >>> create_model_card(trainer, license="apache-2.0").save("README.md")
    """
    folder = Path(trainer.args.output_dir)
    recipe_text = _read(folder / "recipe.yaml")
    recipe = yaml.safe_load(recipe_text) or {}
    metrics = json.loads(_read(folder / "metrics.json") or "{}")
    model_id = getattr(trainer, "hub_model_id", None) or trainer.args.hub_model_id or _short(folder)
    model_name = model_name or model_id.rsplit("/", 1)[-1]
    dataset = dataset or recipe.get("dataset_name")
    sources = recipe.get("encoders") or {}
    config = trainer.model.config
    results = _eval_results(metrics.get("test", {}), config, dataset)
    data = ModelCardData(
        language=language,
        license=license,
        library_name="hf_dgl",
        tags=["hf_dgl", "multimodal", "disentangled-gradient-learning", *_as_list(tags), *config.modalities],
        base_model=[source for source in map(_checkpoint, sources.values()) if _is_hub_id(source)] or None,
        datasets=[dataset] if _is_hub_id(dataset) else None,
        model_name=model_name,
        eval_results=results or None,
    )
    return ModelCard.from_template(
        data,
        template_str=_TEMPLATE.read_text(encoding="utf-8"),
        title=model_name,
        model_id=model_id,
        modalities=config.modalities,
        encoders=_encoder_rows(config, sources),
        fusion_type=config.fusion_type,
        method=trainer.args.method,
        **trainer.args.disentangle_kwargs(),
        table=results_table(metrics, config.modalities, config.problem_type) if metrics else None,
        has_test="test" in metrics,
        example=", ".join(f"{name}={_example(sub_config)}" for name, sub_config in config.encoders.items()),
        recipe=recipe_text,
        version=version("hf-dgl"),
    )


def _eval_results(metrics: Mapping[str, float], config: Any, dataset: str | None) -> list[EvalResult]:
    """One entry per headline metric, fused and for each modality alone."""
    return [
        EvalResult(
            task_type="multimodal-classification",
            dataset_type=dataset or "unknown",
            dataset_name=dataset or "unknown",
            dataset_split="test",
            metric_type=metric,
            metric_name=f"{title} ({modality + ' alone' if modality else 'fused'})",
            metric_value=metrics[key],
        )
        for metric, title in HEADLINES[config.problem_type].items()
        for modality in ("", *config.modalities)
        if (key := f"{metric}_{modality}" if modality else metric) in metrics
    ]


def _encoder_rows(config: Any, sources: Mapping[str, Any]) -> list[list[str]]:
    """Modality, architecture, and the checkpoint that the recipe names for it."""
    rows = []
    for name, sub_config in config.encoders.items():
        source = _checkpoint(sources[name]) if name in sources else "unknown"
        rows.append([name, f"`{sub_config.model_type}`", _link(source) if source else "random weights"])
    return rows


def _checkpoint(source: Any) -> str | None:
    """The checkpoint in a recipe's entry for an encoder; None if the encoder is built from scratch."""
    return source.get("checkpoint") if isinstance(source, Mapping) else source


def _is_hub_id(value: Any) -> bool:
    return (
        isinstance(value, str)
        and ":" not in value
        and not value.startswith((".", "/", "~"))
        and not os.path.exists(value)
    )


def _link(source: str) -> str:
    return f"[{source}](https://huggingface.co/{source})" if _is_hub_id(source) else f"`{source}`"


def _example(encoder_config: Any) -> str:
    """A value for the modality that a reader can replace by a file of their own."""
    return _EXAMPLES.get(encoder_class(encoder_config).main_input_name, '"speech.wav"')


def _short(folder: Path) -> str:
    """A folder as its reader may type it: relative where it lies below the working directory, else its name."""
    folder = folder.absolute()
    return str(folder.relative_to(Path.cwd())) if folder.is_relative_to(Path.cwd()) else folder.name


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _as_list(tags: str | Sequence[str] | None) -> list[str]:
    return [tags] if isinstance(tags, str) else list(tags or ())
