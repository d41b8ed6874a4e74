"""The words: what a *modality* of a model is, and where it lives in one particular model.

A [`Modality`] is a declaration (input names, module paths, regular expressions). [`resolve`] finds what it names in a
real model and gives a [`Partition`]: which modules are encoders, and which modalities each parameter belongs to. A
parameter that belongs to no modality is part of the *fusion*.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from torch import nn

FUSION = "fusion"
"""Name of the parameter group of everything that belongs to no modality (no modality may be called so)."""


@dataclass(frozen=True)
class Modality:
    """Where one modality enters a model.

    Args:
        inputs: Names of the arguments of `model.forward` that carry this modality (`["pixel_values"]`). Needed for
            `absent="omit"` and for the leak check; optional otherwise.
        encoder: Paths of the modules whose outputs are this modality's features, as in `model.named_modules()`. `*`
            stands for one path segment (`"text_model.encoder.layer.*"`). An encoder that is not itself called by the
            model (BridgeTower's towers) is given as the list of the modules that are. A prefix that a wrapper puts in
            front (PEFT's `base_model.model.`) need not be written.
        parameters: Regular expressions (`re.search` on parameter names) of further parameters of this modality, which
            live outside its encoder modules (`"embeddings.cls_token"`).
        exclude: Regular expressions of parameters below the encoder modules that belong to the fusion instead
            (`"crossattention"`).
        absent: What "this modality is absent" means while another one is trained alone. `"zero"`: every floating point
            tensor of the encoder's output is zeroed. `"omit"`: the arguments named in `inputs` are left out of the
            call. Or a function that takes the encoder's (detached) output and returns what the fusion shall see in its
            place.
        hide: Changes the arguments of the call (a dict) while this modality is absent: tokens dropped, an attention
            mask closed. With `absent="omit"` it is done in place of leaving the `inputs` out, otherwise in addition.
        silent: Paths of the fusion's modules that carry this modality's stream (the image side of a cross-attention
            layer). Their output is zero while the modality is absent: the fusion would otherwise refill the empty
            stream from the other modalities.
        vary: Gives the arguments of the call with other values of this modality, for the leak check. Default: other
            contents in the `inputs` ([`hf_dgl.method.variation.varied`]); needed where they hold more than this
            modality (an answer in `input_ids` that stays while the text is absent).

    Example:

        >>> Modality(inputs=["pixel_values"], encoder=["vision_model"]).encoder
        ('vision_model',)
    """

    inputs: Sequence[str] = ()
    encoder: Sequence[str] = ()
    parameters: Sequence[str] = ()
    exclude: Sequence[str] = ()
    absent: str | Callable[[Any], Any] = "zero"
    hide: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    silent: Sequence[str] = ()
    vary: Callable[[dict[str, Any]], dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        for name in ("inputs", "encoder", "parameters", "exclude", "silent"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        if not callable(self.absent) and self.absent not in ("zero", "omit"):
            raise ValueError(f"`absent` must be 'zero', 'omit' or a function, got {self.absent!r}.")
        if not self.encoder:
            raise ValueError(
                "A modality needs at least one module path in `encoder`, e.g. `encoder=['vision_model']`."
            )
        if self.absent == "omit" and not self.inputs and self.hide is None:
            raise ValueError(
                "`absent='omit'` leaves inputs out: name them in `inputs`, e.g. `inputs=['pixel_values']`."
            )

    def without(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the model's forward with this modality absent."""
        if self.hide is not None:
            return self.hide(dict(call))
        if self.absent == "omit":
            return {key: value for key, value in call.items() if key not in self.inputs}
        return dict(call)

    @classmethod
    def parse(cls, value: Modality | Mapping[str, Any] | str | Sequence[str]) -> Modality:
        """A `Modality` from any accepted spelling: itself, a dict of its fields, a module path, or a list of paths.

        Raises:
            ValueError: on an unknown field, with the nearest known one.
        """
        if isinstance(value, Modality):
            return value
        if isinstance(value, str):
            return cls(encoder=[value])
        if isinstance(value, Mapping):
            known = [field.name for field in fields(cls)]
            for key in value:
                if key not in known:
                    raise ValueError(f"Unknown field {key!r} of a modality{did_you_mean(key, known)} Fields: {known}.")
            return cls(**value)
        return cls(encoder=list(value))


@dataclass(frozen=True)
class Partition:
    """The modalities of one model, resolved.

    Attributes:
        modalities: The declarations, by name.
        encoders: For each modality, its encoder modules by path.
        owners: For every parameter name (each alias of a tied parameter included) the modalities it belongs to; the
            empty set means the fusion. A parameter tied between an encoder and the fusion belongs to the encoder; one
            tied between two encoders belongs to both.
        slots: Where each parameter is kept: (module, its name there, owners). Wrappers such as FSDP exchange parameter
            objects, but not their places.
        silent: For each modality, the fusion's modules that are silent while it is absent.
        moved: Buffers and attributes that a forward in training changes, as far as a trial has shown: module and name.
    """

    modalities: dict[str, Modality]
    encoders: dict[str, dict[str, nn.Module]]
    owners: dict[str, frozenset[str]]
    slots: list[tuple[nn.Module, str, frozenset[str]]]
    silent: dict[str, list[nn.Module]]
    moved: set[tuple[nn.Module, str]] = field(default_factory=set)

    def parameters(self) -> Iterator[tuple[nn.Parameter, frozenset[str]]]:
        """Every parameter as it is now, with its owners; a tied one once for each of its places."""
        for module, name, owners in self.slots:
            parameter = module._parameters[name]
            assert parameter is not None
            yield parameter, owners

    def parameter_names(self, group: str) -> list[str]:
        """Names of the parameters of a modality, or of [`FUSION`]."""
        if group == FUSION:
            return [name for name, owners in self.owners.items() if not owners]
        return [name for name, owners in self.owners.items() if group in owners]

    def per_modality(
        self, name: str, value: float | Mapping[str, float], upper: float | None = None
    ) -> dict[str, float]:
        """`value` of the setting `name` for each modality, checked (0 to `upper`)."""
        known = list(self.modalities)
        if isinstance(value, Mapping):
            for key in value:
                if key not in known:
                    raise ValueError(
                        f"`{name}` names an unknown modality {key!r}{did_you_mean(key, known)} Modalities: {known}."
                    )
            missing = [key for key in known if key not in value]
            if missing:
                raise ValueError(f"`{name}` has no value for {missing}: give one number, or one for each of {known}.")
            values = {key: float(value[key]) for key in known}
        else:
            values = {key: float(value) for key in known}
        for key, number in values.items():
            if not number >= 0 or (upper is not None and number > upper):
                bounds = "0 or more" if upper is None else f"between 0 and {upper:g}"
                raise ValueError(f"`{name}` must be {bounds}, got {number:g} for modality {key!r}.")
        return values

    @property
    def groups(self) -> list[str]:
        """The modalities' names and `FUSION`."""
        return [*self.modalities, FUSION]


def resolve(model: nn.Module, modalities: Mapping[str, Any]) -> Partition:
    """Finds declared modalities in `model`.

    Raises:
        ValueError: a module path or a regular expression that matches nothing (with the nearest match), one module
            claimed by two modalities, a reserved or missing name.
    """
    if not isinstance(modalities, Mapping):
        raise ValueError(
            "`modalities`: expected a dict such as {'image': 'vision_model', 'text': 'text_model'} or 'auto', got "
            f"{modalities!r}."
        )
    if not modalities:
        raise ValueError(
            "`modalities` is empty: name at least one, e.g. `{'image': 'vision_model', 'text': 'text_model'}`."
        )
    if FUSION in modalities:
        raise ValueError(
            f"{FUSION!r} is the name of what belongs to no modality: choose another name for the modality."
        )
    declared = {name: Modality.parse(value) for name, value in modalities.items()}
    encoders = {name: _find(model, name, modality.encoder) for name, modality in declared.items()}
    silent = {name: list(_find(model, name, modality.silent).values()) for name, modality in declared.items()}
    _refuse_shared_modules(encoders)
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    claims = {name: _claimed_names(names, name, modality, encoders[name]) for name, modality in declared.items()}
    # A tied parameter has several names and one identity: whoever claims one of its names owns it under all of them.
    owners_by_identity: dict[int, set[str]] = {}
    for parameter_name, parameter in model.named_parameters(remove_duplicate=False):
        claimed_by = {name for name in declared if parameter_name in claims[name]}
        owners_by_identity.setdefault(id(parameter), set()).update(claimed_by)
    owners = {
        name: frozenset(owners_by_identity[id(parameter)])
        for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    slots = [
        (module, name, owners[f"{path}.{name}" if path else name])
        for path, module in model.named_modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
    ]
    return Partition(declared, encoders, owners, slots, silent)


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`": did you mean 'x'?"` for the nearest known word, or `"."` when nothing is near."""
    matches = difflib.get_close_matches(word, known, n=1)
    if not matches:  # a path whose last part is right but whose prefix is not
        last = word.rsplit(".", 1)[-1]
        matches = [name for name in known if name.rsplit(".", 1)[-1] == last][:1]
    return f": did you mean {matches[0]!r}?" if matches else "."


def _find(model: nn.Module, name: str, patterns: Sequence[str]) -> dict[str, nn.Module]:
    modules = {path: module for path, module in model.named_modules(remove_duplicate=False) if path}
    found: dict[str, nn.Module] = {}
    for pattern in patterns:
        paths = _matching_paths(pattern, list(modules))
        if not paths:
            raise ValueError(
                f"Modality {name!r}: the model has no module {pattern!r}{did_you_mean(pattern, list(modules))} "
                f"`[path for path, _ in model.named_modules()]` lists them all."
            )
        for path in paths:
            _refuse_container(name, path, modules[path])
            found[path] = modules[path]
    return found


def _refuse_container(name: str, path: str, module: nn.Module) -> None:
    if type(module).forward is nn.Module.forward:
        items = [f"{path}.{child}" for child, _ in module.named_children()]
        named = [f"{path}.*"] if len(items) > 1 and isinstance(module, nn.ModuleList) else items
        raise ValueError(
            f"Modality {name!r}: {path!r} is a {type(module).__name__}, which has no forward and is never called. "
            f"Name what is in it: {named}."
        )


def _matching_paths(pattern: str, paths: list[str]) -> list[str]:
    """Paths equal to `pattern` (`*` = one segment), else those that end with it behind one common prefix (a
    wrapper's)."""
    expression = r"\.".join(r"[^.]+" if part == "*" else re.escape(part) for part in pattern.split("."))
    exact = [path for path in paths if re.fullmatch(expression, path)]
    if exact:
        return exact
    behind_prefix: dict[str, list[str]] = {}
    for path in paths:
        match = re.fullmatch(rf"(.+\.){expression}", path)
        if match:
            behind_prefix.setdefault(match[1], []).append(path)
    inside = tuple(f"{path}." for found in behind_prefix.values() for path in found)
    outermost = [found for prefix, found in behind_prefix.items() if not prefix.startswith(inside)]
    return outermost[0] if len(outermost) == 1 else []


def _refuse_shared_modules(encoders: dict[str, dict[str, nn.Module]]) -> None:
    seen: dict[nn.Module, tuple[str, str]] = {}
    for name, modules in encoders.items():
        for path, module in modules.items():
            other = seen.setdefault(module, (name, path))
            if other[0] != name:
                raise ValueError(
                    f"Module {path!r} of modality {name!r} is the module {other[1]!r} of modality {other[0]!r}: one "
                    "module cannot be the encoder of two modalities. Give each its own (they may share parameters)."
                )


def _claimed_names(
    names: list[str], modality_name: str, modality: Modality, encoders: dict[str, nn.Module]
) -> frozenset[str]:
    claimed = {name for name in names if any(name.startswith(f"{path}.") for path in encoders)}
    for pattern in modality.parameters:
        matched = {name for name in names if re.search(pattern, name)}
        if not matched:
            raise ValueError(
                f"Modality {modality_name!r}: no parameter matches {pattern!r} in `parameters`"
                f"{did_you_mean(pattern, names)}"
            )
        claimed |= matched
    for pattern in modality.exclude:
        matched = {name for name in claimed if re.search(pattern, name)}
        if not matched:
            raise ValueError(
                f"Modality {modality_name!r}: `exclude` pattern {pattern!r} matches none of its parameters"
                f"{did_you_mean(pattern, sorted(claimed))}"
            )
        claimed -= matched
    return frozenset(claimed)
