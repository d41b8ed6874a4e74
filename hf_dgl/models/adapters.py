"""LoRA (PEFT) on encoders and fusion: what a recipe's `peft:` block does, and how such a model is saved and loaded.

    peft: {r: 8, lora_alpha: 16}          # every linear layer of the encoders; or add `modules: fusion` or `all`

| part | how it is trained |
|---|---|
| what `modules` chooses: `encoders` (default), `fusion` (with the projections in front of it), `all` | LoRA |
| a fusion that is not chosen, the classifier, encoders that start from scratch | in full |
| encoders from checkpoints that are not chosen | not at all (their unimodal pass is skipped) |

A multimodal checkpoint as it is (`model_name_or_path`) has no part that starts from scratch but a classifier: what
`modules` does not choose is not trained at all there ([`add_native_adapters`]).

What is trained in full is saved with the adapter (PEFT's `modules_to_save`), so that an adapter folder holds all that
was learned: `adapter_model.safetensors`, `adapter_config.json`, `config.json` (the model's) and `base.json` (which
checkpoints it was built on). [`load_model`] puts them together again, bit for bit.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_type_hints

import torch
import transformers
import yaml
from torch import nn
from transformers.pytorch_utils import Conv1D
from transformers.utils import cached_file, logging
from transformers.utils.peft_utils import find_adapter_config_file

from hf_dgl.method.modalities import did_you_mean, resolve

from .configuration_cross_modal import CrossModalConfig
from .encoder_specs import resolve_encoder
from .extras import require
from .modeling_cross_modal import CrossModalForSequenceClassification
from .whole import load_whole

logger = logging.get_logger(__name__)

MODULES = ("encoders", "fusion", "all")
"""What `modules` in a `peft:` block may be."""

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "base.json")
_BASE = "base.json"
_CLASSIFIERS = ("score", "classifier", "head", "itm_score", "answer_head")
_OF_THE_CONFIG = ("encoders", "model_type", "architectures", "transformers_version", "dtype")


def check_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a `peft:` block, typed.

    Args:
        settings: Fields of `peft.LoraConfig`, and `modules`. Words of a command line will do as values.

    Raises:
        ValueError: if PEFT is not installed; on an unknown key (with the nearest one) or a value of the wrong type.

    Example:

        >>> check_settings({"r": "8", "modules": "all"})
        {'r': 8, 'modules': 'all'}
    """
    hints = get_type_hints(_peft().LoraConfig)
    known = [*(name for name in hints if name != "peft_version"), "modules"]
    checked: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in known:
            raise ValueError(
                f"peft: unknown key {key!r}{did_you_mean(str(key), known)} It takes `modules` and the fields of "
                "`peft.LoraConfig`."
            )
        checked[key] = _typed(key, value, hints.get(key, str))
    modules = checked.get("modules", MODULES[0])
    if modules not in MODULES:
        raise ValueError(
            f"peft: `modules` must be one of {list(MODULES)}, got {modules!r}{did_you_mean(str(modules), MODULES)}"
        )
    start = checked.get("init_lora_weights", True)
    if not isinstance(start, bool) and start not in ("gaussian", "orthogonal"):
        raise ValueError(
            f"peft: init_lora_weights={start!r} changes the weights that the adapter is saved without; expected "
            "true, 'gaussian' or 'orthogonal'."
        )
    return checked


def add_adapters(
    model: CrossModalForSequenceClassification,
    settings: Mapping[str, Any],
    new: Collection[str] = (),
    frozen: Collection[str] = (),
    base: Mapping[str, Any] | None = None,
) -> Any:
    """Puts LoRA layers into a model, as the table on top of this file says. Attach DGL afterwards.

    Args:
        model: Changed in place.
        settings: Of the `peft:` block, see [`check_settings`]. Without `target_modules` every linear layer of the
            chosen parts gets LoRA; with it, those that it names.
        new: Modalities whose encoder starts from scratch.
        frozen: Parts that `freeze` names: they get no LoRA.
        base: What the model was built from, for `base.json`: `encoders` (as in a recipe) or `model_name_or_path`.

    Returns:
        A `peft.PeftModel`.

    Raises:
        ValueError: see [`check_settings`]; if no layer is left for LoRA.

    Example:

        >>> model = add_adapters(model, {"r": 8, "lora_alpha": 16})
        >>> model.print_trainable_parameters()
    """
    peft = _peft()
    lora = check_settings(settings)
    modules = lora.pop("modules", MODULES[0])
    names = list(model.config.encoders)
    fusion = [f"cross_modal.projections.{name}" for name in names]
    fusion += ["cross_modal.fusion"] if any(True for _ in model.cross_modal.fusion.parameters()) else []
    chosen = [f"cross_modal.encoders.{name}" for name in names if name not in new and name not in frozen]
    chosen = chosen if modules in ("encoders", "all") else []
    in_full = [f"cross_modal.encoders.{name}" for name in new]
    if modules in ("fusion", "all") and "fusion" not in frozen:
        chosen += fusion
    else:
        in_full += fusion
    targets = _targets(model, chosen, lora)
    if not targets:
        parts = ", ".join(chosen) or "nothing (encoders that start from scratch are trained in full)"
        raise ValueError(
            f"peft: there is no layer for LoRA with `modules: {modules}`, which chooses {parts}. Choose other "
            f"`modules` ({list(MODULES)}) or `target_modules`, or take the `peft` block out."
        )
    lora |= {"target_modules": targets, "exclude_modules": None, "layers_to_transform": None, "layers_pattern": None}
    lora["modules_to_save"] = [*in_full, "classifier", *(lora.get("modules_to_save") or [])]
    try:
        adapted = peft.get_peft_model(model, peft.LoraConfig(**lora))
    except (TypeError, ValueError) as error:
        raise ValueError(f"peft: {error}") from error
    if base is not None:
        adapted.hf_dgl_base = dict(base)
    return adapted


def add_native_adapters(
    model: Any, settings: Mapping[str, Any], modalities: Mapping[str, Any], base: Mapping[str, Any] | None = None
) -> Any:
    """Puts LoRA layers into a multimodal checkpoint as it is. Attach DGL afterwards.

    Args:
        model: Changed in place.
        settings: Of the `peft:` block. `modules: encoders` (default) means the towers and projections of `modalities`,
            `fusion` all other layers (a language model, say) but the head, `all` both.
        modalities: Name -> `Modality`, from [`hf_dgl.architectures.modalities_of`].
        base: As for [`add_adapters`]: `model_name_or_path` and `model_class`.

    Returns:
        A `peft.PeftModel`. A classifier on top is trained in full; a language model's head is not trained.

    Raises:
        ValueError: see [`check_settings`]; if no layer is left for LoRA.

    Example:

        >>> model = add_native_adapters(model, {"r": 8, "modules": "all"}, modalities_of(model))
    """
    peft = _peft()
    lora = check_settings(settings)
    modules = lora.pop("modules", MODULES[0])
    encoders = [path for found in resolve(model, modalities).encoders.values() for path in found]
    top = [name for name, _ in model.named_children()]
    heads = [name for name in top if name in _CLASSIFIERS]
    layers = _targets(model, top, lora)
    layers = [path for path in layers if path.partition(".")[0] not in (*heads, "lm_head")]
    inside = [path for path in layers if any(path == e or path.startswith(f"{e}.") for e in encoders)]
    targets = {"encoders": inside, "fusion": [path for path in layers if path not in inside], "all": layers}[modules]
    if not targets:
        raise ValueError(
            f"peft: there is no layer for LoRA with `modules: {modules}`. Choose other `modules` ({list(MODULES)}) or "
            "`target_modules`, or take the `peft` block out."
        )
    lora |= {"target_modules": targets, "exclude_modules": None, "layers_to_transform": None, "layers_pattern": None}
    lora["modules_to_save"] = [*heads, *(lora.get("modules_to_save") or [])] or None
    try:
        adapted = peft.get_peft_model(model, peft.LoraConfig(**lora))
    except (TypeError, ValueError) as error:
        raise ValueError(f"peft: {error}") from error
    if base is not None:
        adapted.hf_dgl_base = dict(base)
    return adapted


def is_adapter(model_id: str | os.PathLike[str], **kwargs: Any) -> bool:
    """Whether a folder or Hub repository holds an adapter, and not a whole model.

    Args:
        model_id: A folder, or a Hub id.
        **kwargs: `token`, `revision`, `cache_dir`, ...

    Example:

        >>> is_adapter("outputs/image_text/adapter")
        True
    """
    hub = {name: kwargs[name] for name in ("token", "revision", "cache_dir") if name in kwargs}
    return find_adapter_config_file(os.fspath(model_id), **hub) is not None


def load_model(model_id: str | os.PathLike[str], **kwargs: Any) -> Any:
    """Loads what a training run saved: a whole model, or an adapter together with the base it was trained on.

    Args:
        model_id: A folder (an output folder, its `adapter`, one of its checkpoints) or a Hub id.
        **kwargs: `token`, `revision`, `trust_remote_code`, ... of `from_pretrained`.

    Returns:
        A [`CrossModalForSequenceClassification`], or a `peft.PeftModel` with one (or with a multimodal checkpoint as
        it is) inside, in eval mode.

    Raises:
        ValueError: if it is an adapter and PEFT, or `base.json`, is missing; or if weights are missing.

    Example:

        >>> load_model("outputs/image_text/adapter").merge_and_unload().save_pretrained("merged")
    """
    model_id = os.fspath(model_id)
    if not is_adapter(model_id, **kwargs):
        return load_whole(CrossModalForSequenceClassification, model_id, is_ours=True, **kwargs)
    peft = _peft()
    hub = {name: value for name, value in kwargs.items() if name != "trust_remote_code"}
    file = cached_file(model_id, _BASE, _raise_exceptions_for_missing_entries=False, **hub)
    if file is None:
        raise ValueError(
            f"{model_id} holds an adapter without {_BASE}, so hf_dgl did not save it and cannot tell what it builds "
            "on. Build that model, then `peft.PeftModel.from_pretrained(model, ...)`."
        )
    base = json.loads(Path(file).read_text(encoding="utf-8"))
    return peft.PeftModel.from_pretrained(_base_model(base, model_id, kwargs), model_id, **hub).eval()


def complete_adapter(model: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Adds to a folder that PEFT saved into what [`load_model`] needs; nothing for other models.

    Example:

        >>> model.save_pretrained("out")
        >>> complete_adapter(model, "out")
    """
    if not hasattr(model, "peft_config"):
        return
    Path(folder, "README.md").unlink(missing_ok=True)  # PEFT's draft of a card; we write our own
    base = getattr(model, "hf_dgl_base", None)
    if base is not None:
        model.config.save_pretrained(folder)  # type: ignore[operator, union-attr]
        Path(folder, _BASE).write_text(json.dumps(base, indent=2) + "\n", encoding="utf-8")


def quantized(encoders: Mapping[str, Any], bits: int) -> dict[str, Any]:
    """The encoders that come from checkpoints, to be loaded in 4 or 8 bits.

    Args:
        encoders: Modality -> what [`resolve_encoder`] gave.
        bits: 4 or 8.

    Raises:
        ValueError: if bitsandbytes is not installed.

    Example:

        >>> quantized({"text": "FacebookAI/roberta-base"}, bits=4)["text"]["quantization_config"].load_in_4bit
        True
    """
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            f"load_in_{bits}bit needs the package bitsandbytes, which is not installed here. Type: pip install "
            f"bitsandbytes (it wants a GPU), or take load_in_{bits}bit out."
        )
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_quant_type="nf4")
    found = {}
    for name, encoder in encoders.items():
        if isinstance(encoder, str):
            encoder = {"checkpoint": encoder}
        found[name] = {**encoder, "quantization_config": config} if isinstance(encoder, Mapping) else encoder
    return found


def _base_model(base: Mapping[str, Any], model_id: str, kwargs: Mapping[str, Any]) -> Any:
    """The model below an adapter, built as it was for training (what is new in it is replaced by the adapter's)."""
    if "model_class" in base:
        return _native_base_model(base, model_id, kwargs)
    config = CrossModalConfig.from_pretrained(model_id, **kwargs)
    hub = {"token": kwargs.get("token"), "trust_remote_code": kwargs.get("trust_remote_code", False)}
    hub["revision"] = base.get("revision")
    if "model_name_or_path" in base:
        return CrossModalForSequenceClassification.from_pretrained(
            base["model_name_or_path"], config=config, ignore_mismatched_sizes=True, **hub
        )
    encoders = {
        name: config.encoders[name] if _is_new(value) else resolve_encoder(name, value)
        for name, value in base["encoders"].items()
    }
    if base.get("bits"):
        encoders = quantized(encoders, base["bits"])
    settings = {name: value for name, value in config.to_diff_dict().items() if name not in _OF_THE_CONFIG}
    return CrossModalForSequenceClassification.from_encoders(encoders, **settings, **hub)


def _native_base_model(base: Mapping[str, Any], model_id: str, kwargs: Mapping[str, Any]) -> Any:
    """The checkpoint below an adapter, with the head that the adapter was trained with."""
    import hf_dgl.models

    kind = getattr(transformers, base["model_class"], None) or getattr(hf_dgl.models, base["model_class"])
    hub = {"token": kwargs.get("token"), "trust_remote_code": kwargs.get("trust_remote_code", False)}
    config = kind.config_class.from_pretrained(model_id, **kwargs)
    return kind.from_pretrained(
        base["model_name_or_path"],
        config=config,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        revision=base.get("revision"),
        **hub,
    )


def _is_new(encoder: Any) -> bool:
    return isinstance(encoder, Mapping) and "checkpoint" not in encoder


def _targets(model: nn.Module, chosen: Sequence[str], lora: Mapping[str, Any]) -> list[str]:
    """Full names of the layers below `chosen` that get LoRA."""
    from peft.tuners.tuners_utils import check_target_module_exists

    modules = dict(model.named_modules())
    below = {name: module for name, module in modules.items() if any(name.startswith(f"{p}.") for p in chosen)}
    linear = [
        name
        for name, module in below.items()
        if isinstance(module, (nn.Linear, Conv1D))
        and not isinstance(modules[name.rpartition(".")[0]], nn.MultiheadAttention)  # reads the weight, no call
    ]
    wanted = lora.get("target_modules") or "all-linear"
    candidates = linear if wanted == "all-linear" else list(below)
    if wanted == "all-linear":
        wanted = sorted({name.rpartition(".")[2] for name in linear})
    probe = _peft().LoraConfig(**{**lora, "target_modules": wanted, "modules_to_save": None})
    return [name for name in candidates if check_target_module_exists(probe, name)]


def _typed(key: str, value: Any, hint: Any) -> Any:
    if isinstance(value, str) and hint is not str:
        try:
            value = yaml.safe_load(value)
        except yaml.YAMLError:
            pass  # a regular expression, say
    if hint in (int, float):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = float("nan")
        if isinstance(value, bool) or number != number or (key == "r" and not (number >= 1 and number.is_integer())):
            raise ValueError(f"peft: expected a number for `{key}`, got {value!r}.")
        return int(number) if number.is_integer() and hint is int else number
    if hint is bool and not isinstance(value, bool):
        raise ValueError(f"peft: expected true or false for `{key}`, got {value!r}.")
    return value


def _peft() -> Any:
    require("LoRA", "peft", "peft")
    import peft

    return peft
