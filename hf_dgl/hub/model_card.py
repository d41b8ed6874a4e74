"""The model card that goes with a fine-tuned model (`README.md` on the Hub)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_dgl.method.methods import IN_WORDS
from hf_dgl.models.encoders import encoder_class
from hf_dgl.reports.curves import PICTURES, described, panels
from hf_dgl.reports.model_picture import MODEL_PICTURE
from hf_dgl.reports.model_tree import count, inspect_model
from hf_dgl.reports.result_tables import HEADLINES, results_so_far, results_table

from .markdown import cell, code, fence_around, link, plain
from .tokens import redacted

_TEMPLATE = Path(__file__).parent / "templates" / "model_card.md"
_MANY_LABELS = 30


def create_model_card(
    trainer: Any,
    model_name: str | None = None,
    language: str | None = None,
    license: str | None = None,
    tags: str | Sequence[str] | None = None,
    dataset: str | Sequence[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> ModelCard:
    """The card of a trainer's model. It names no folder of this machine and no token.

    Args:
        trainer: A [`~hf_dgl.DGLTrainer`]. Described are its model, arguments and recipe, and, from its
            `output_dir`, what lies there: `metrics.json`, `recipe.yaml`, pictures, the report.
        model_name: Default: the name of `output_dir`, or of the repository on the Hub.
        language, license, tags: As in the card's metadata; tags are added to ours.
        dataset: What the model was trained on. Default: the recipe's `dataset_name`.
        checkpoint: Folder of a checkpoint or of adapters, whose card this is: with the results so far, no pictures. (A
            card that is written during training shows the results so far, too.)

    Returns:
        A card whose `str()` is the README, with a `model-index` that holds every result of the test split.

    Example:

        >>> create_model_card(trainer, license="apache-2.0").save("README.md")
    """
    folder = Path(trainer.args.output_dir or ".")
    is_done = checkpoint is None and not trainer.is_in_train  # else the folder's files are of an earlier run
    recipe = _public(yaml.safe_load(trainer.recipe or (_read(folder / "recipe.yaml") if is_done else "")) or {})
    saved_metrics = _read(folder / "metrics.json") if is_done else ""
    metrics = json.loads(saved_metrics) if saved_metrics else results_so_far(trainer.state.log_history)
    model = trainer.accelerator.unwrap_model(trainer.model)
    is_adapter = hasattr(model, "peft_config")
    model = getattr(model, "get_base_model", lambda: model)()  # below PEFT
    config = getattr(model, "config", None)
    model_id = trainer.hub_model_id or trainer.args.hub_model_id or _short(Path(checkpoint or folder))
    model_name = model_name or (trainer.hub_model_id or trainer.args.hub_model_id or _short(folder)).rsplit("/", 1)[-1]
    revision = trainer.args.hub_revision if trainer.args.push_to_hub else None
    modalities = list(trainer.disentangled.partition.modalities) if trainer.disentangled else []
    problem_type = getattr(config, "problem_type", None) or "single_label_classification"
    sources = recipe.get("encoders") or {}
    datasets = [name for name in _as_list(dataset or recipe.get("dataset_name")) if name]
    recipe_text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True) if recipe else None
    return ModelCard.from_template(
        ModelCardData(
            language=language,
            license=license,
            model_name=model_name,
            tags=["hf_dgl", "multimodal", "disentangled-gradient-learning", *_as_list(tags), *modalities],
            datasets=[name for name in datasets if _is_hub_id(name)] or None,
            **_metadata(recipe, metrics, modalities, problem_type),
        ),
        template_str=_TEMPLATE.read_text(encoding="utf-8"),
        title=plain(model_name),
        source=f"{_quoted(model_id)}, revision={_quoted(revision)}" if revision else _quoted(model_id),
        model_class=type(model).__name__,
        model_package="hf_dgl.models" if type(model).__module__.startswith("hf_dgl") else "transformers",
        is_adapter=is_adapter,
        modalities=modalities,
        **_about_encoders(config, sources, trainer.processing_class),
        datasets=[_link(name, "datasets/") for name in datasets],
        answers=_answers(config, problem_type),
        method=trainer.args.method,
        baseline=IN_WORDS.get(trainer.args.method or ""),
        **{key: _numbers(value) for key, value in trainer.args.disentangle_kwargs().items()},
        table=results_table(metrics, modalities, problem_type) if metrics else None,
        has_test="test" in metrics,
        step=None if is_done else trainer.state.global_step,
        resumed=map(plain, (trainer.state.stateful_callbacks or {}).get("ResumedWith", [])),
        pictures={} if checkpoint else _pictures(trainer, folder, modalities, problem_type),
        report=is_done and (folder / "report.html").is_file(),
        missing=_missing(metrics, modalities, problem_type),
        recipe=recipe_text,
        fence=fence_around(recipe_text or ""),
        version=version("hf-dgl"),
    )


def is_card_of_others(path: str | os.PathLike[str]) -> bool:
    """Whether a README lies there that this toolkit has not written: one to leave alone.

    Example:

        >>> is_card_of_others("outputs/image_text/README.md")
        False
    """
    text = _read(Path(path))
    return bool(text) and "library_name: hf_dgl" not in text.partition("\n---")[0]


def _metadata(
    recipe: Mapping[str, Any], metrics: Mapping[str, Any], modalities: Sequence[str], problem_type: str
) -> dict[str, Any]:
    """What the card's head says of every such model: what it started from, and its results."""
    started_from = [*map(_checkpoint, (recipe.get("encoders") or {}).values()), recipe.get("model_name_or_path")]
    return {
        "library_name": "hf_dgl",
        "base_model": [str(source) for source in started_from if _is_hub_id(source)] or None,
        "eval_results": _eval_results(metrics.get("test", {}), modalities, problem_type, recipe) or None,
    }


def _about_encoders(config: Any, sources: Mapping[str, Any], processor: Any) -> dict[str, Any]:
    """Fields of the template for a model of ours; empty ones for any other."""
    encoders = getattr(config, "encoders", None) or {}
    return {
        "encoders": _encoder_rows(encoders, sources),
        "fusion_type": getattr(config, "fusion_type", None),
        "example": ", ".join(f"{name}={_example(encoder)}" for name, encoder in encoders.items()),
        "raw": _raw_inputs(encoders, processor),
    }


def _answers(config: Any, problem_type: str) -> str:
    """What the model puts out, in words."""
    labels = [str(label) for _, label in sorted((getattr(config, "id2label", None) or {}).items())]
    if problem_type == "regression":
        return "a number" if len(labels) < 2 else f"numbers: {', '.join(map(code, labels))}"
    shown = ", ".join(code(label) for label in labels[:_MANY_LABELS])
    shown += f", ... ({len(labels)} in all)" if len(labels) > _MANY_LABELS else ""
    return f"{'any' if problem_type == 'multi_label_classification' else 'one'} of these labels: {shown}"


def _missing(metrics: Mapping[str, Mapping[str, float]], modalities: Sequence[str], problem_type: str) -> list[str]:
    """How the score falls where only one modality is there."""
    stage = next((stage for stage in ("test", "validation") if stage in metrics), None)
    if stage is None:
        return []
    metric, title = next(iter(HEADLINES[problem_type].items()))
    scores = metrics[stage]
    found = [(name, scores[f"{metric}_{name}"]) for name in modalities if f"{metric}_{name}" in scores]
    fused = f"{title} {scores[metric]:.3f} with all of them ({stage} split)" if metric in scores else ""
    return [fused, *(f"{score:.3f} with {name} only" for name, score in found)] if fused and found else []


def _pictures(trainer: Any, folder: Path, modalities: Sequence[str], problem_type: str) -> dict[str, str]:
    """File -> what it shows, in words and numbers, for those who do not see it."""
    log, classes = trainer.state.log_history, getattr(getattr(trainer.model, "config", None), "num_labels", None)
    found = panels(log, modalities, problem_type, classes)
    told = {
        name: " ".join(described(found[panel]) for panel in shown if panel in found)
        for name, shown in PICTURES.items()
    }
    if trainer.disentangled is not None:
        groups = inspect_model(trainer.disentangled).groups
        sizes = ", ".join(f"{name} {count(group.parameters)} ({group.share:.0%})" for name, group in groups.items())
        told = {MODEL_PICTURE: f"Encoders below, fusion above. Parameters: {sizes}.", **told}
    return {name: text for name, text in told.items() if (folder / name).is_file()}


def _eval_results(
    metrics: Mapping[str, float], modalities: Sequence[str], problem_type: str, recipe: Mapping[str, Any]
) -> list[EvalResult]:
    """One entry per headline metric, fused and for each modality alone."""
    dataset = " + ".join(_as_list(recipe.get("dataset_name"))) or "unknown"  # several, if data sets are mixed
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
        started = cell(_link(source)) if source else "random weights"
        rows.append([cell(plain(name)), cell(code(config.model_type)), started])
    return rows


def _checkpoint(source: Any) -> str | None:
    """The checkpoint in a recipe's entry for an encoder; None if the encoder is built from scratch."""
    return source.get("checkpoint") if isinstance(source, Mapping) else source


def _is_hub_id(value: str | None) -> bool:
    return bool(value) and ":" not in str(value) and not os.path.exists(str(value)) and str(value)[0] not in "./~"


def _link(source: str, kind: str = "") -> str:
    if source == "not recorded":
        return source
    return link(source, f"https://huggingface.co/{kind}{source}") if _is_hub_id(source) else code(source)


def _quoted(text: str) -> str:
    """A Python string in double quotes."""
    return json.dumps(text, ensure_ascii=False)


def _example(encoder_config: Any) -> str:
    """A value for the modality that a reader can replace by a file of their own."""
    examples = {"pixel_values": '"photo.png"', "input_ids": '"a text"'}
    return examples.get(encoder_class(encoder_config).main_input_name, '"speech.wav"')


def _raw_inputs(encoders: Mapping[str, Any], processor: Any) -> list[str]:
    """`image=[Image.open("photo.png")]`, ...: the same, as the processor wants it."""
    lines = []
    for name, config in encoders.items():
        example = _example(config)
        if "photo" in example:
            lines.append(f'{name}=[Image.open({example}).convert("RGB")],')
        elif "speech" in example:
            rate = processor.sampling_rate(name) if hasattr(processor, "sampling_rate") else None
            lines.append(f'{name}=[soundfile.read({example}, dtype="float32")[0]],  # mono, {rate or "the right"} Hz')
        else:
            lines.append(f"{name}=[{example}],")
    return lines


def _public(value: Any) -> Any:
    """A recipe as others may see it: of a folder of this machine only its name remains."""
    if isinstance(value, Mapping):
        return {key: _public(entry) for key, entry in value.items() if not str(key).endswith("token")}
    if isinstance(value, list):
        return [_public(entry) for entry in value]
    if isinstance(value, str) and (os.path.isabs(value) or value.startswith("~")):
        return f".../{Path(value).name}"
    return redacted(value) if isinstance(value, str) else value


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
