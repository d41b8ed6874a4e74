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
    dataset: str | Sequence[str] | None = None,
) -> ModelCard:
    """The card of a trainer's model. Results and recipe are those in its `output_dir`, if `finetune` put them there.

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
    folder = Path(trainer.args.output_dir or ".")
    recipe_text = _read(folder / "recipe.yaml")
    recipe = yaml.safe_load(recipe_text) or {}
    metrics = json.loads(_read(folder / "metrics.json") or "{}")
    model = trainer.accelerator.unwrap_model(trainer.model)
    model = getattr(model, "get_base_model", lambda: model)()  # below PEFT
    model_id = trainer.hub_model_id or trainer.args.hub_model_id or _short(folder)
    model_name = model_name or model_id.rsplit("/", 1)[-1]
    modalities = list(trainer.disentangled.partition.modalities) if trainer.disentangled else []
    problem_type = getattr(model.config, "problem_type", None) or "single_label_classification"
    sources = recipe.get("encoders") or {}
    data = ModelCardData(
        language=language,
        license=license,
        library_name="hf_dgl",
        tags=["hf_dgl", "multimodal", "disentangled-gradient-learning", *_as_list(tags), *modalities],
        base_model=[str(source) for source in map(_checkpoint, sources.values()) if _is_hub_id(source)] or None,
        datasets=[name for name in _as_list(dataset or recipe.get("dataset_name")) if _is_hub_id(name)] or None,
        model_name=model_name,
        eval_results=_eval_results(metrics.get("test", {}), modalities, problem_type, recipe) or None,
    )
    encoders = getattr(model.config, "encoders", None) or {}
    return ModelCard.from_template(
        data,
        template_str=_TEMPLATE.read_text(encoding="utf-8"),
        title=model_name,
        model_id=model_id,
        model_class=type(model).__name__,
        modalities=modalities,
        encoders=_encoder_rows(encoders, sources),
        fusion_type=getattr(model.config, "fusion_type", None),
        example=", ".join(f"{name}={_example(config)}" for name, config in encoders.items()),
        method=trainer.args.method,
        **{key: _numbers(value) for key, value in trainer.args.disentangle_kwargs().items()},
        table=results_table(metrics, modalities, problem_type) if metrics else None,
        has_test="test" in metrics,
        recipe=recipe_text,
        version=version("hf-dgl"),
    )


def _eval_results(
    metrics: Mapping[str, float], modalities: Sequence[str], problem_type: str, recipe: Mapping[str, Any]
) -> list[EvalResult]:
    """One entry per headline metric, fused and for each modality alone."""
    dataset = recipe.get("dataset_name") or "unknown"
    return [
        EvalResult(
            task_type="multimodal-classification",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_split=recipe.get("test_split") or "test",
            metric_type=metric,
            metric_name=f"{title} ({modality + ' alone' if modality else 'fused'})",
            metric_value=metrics[key],
        )
        for metric, title in HEADLINES[problem_type].items()
        for modality in ("", *modalities)
        if (key := f"{metric}_{modality}" if modality else metric) in metrics
    ]


def _encoder_rows(encoders: Mapping[str, Any], sources: Mapping[str, Any]) -> list[list[str]]:
    """Modality, architecture, and the checkpoint that the recipe names for it."""
    rows = []
    for name, config in encoders.items():
        source = _checkpoint(sources[name]) if name in sources else "not recorded"
        rows.append([name, f"`{config.model_type}`", _link(source) if source else "random weights"])
    return rows


def _checkpoint(source: Any) -> str | None:
    """The checkpoint in a recipe's entry for an encoder; None if the encoder is built from scratch."""
    return source.get("checkpoint") if isinstance(source, Mapping) else source


def _is_hub_id(value: str | None) -> bool:
    return bool(value) and ":" not in str(value) and not os.path.exists(str(value)) and str(value)[0] not in "./~"


def _link(source: str) -> str:
    if source == "not recorded":
        return source
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


def _numbers(value: Any) -> Any:
    """`{"image": 2.0, "text": 1.0}` -> `2.0 (image), 1.0 (text)`; anything else as it is."""
    return ", ".join(f"{number} ({name})" for name, number in value.items()) if isinstance(value, Mapping) else value


def _as_list(tags: str | Sequence[str] | None) -> list[str]:
    return [tags] if isinstance(tags, str) else list(tags or ())
