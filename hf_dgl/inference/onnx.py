"""A fine-tuned model as one ONNX graph, checked against torch before it is kept.

    inputs   `<modality>.<name>`     what the modality's processor returns, e.g. `image.pixel_values`, `text.input_ids`
             `<modality>.present`    bool [B]: False in rows that lack the modality
    output   `logits`                float32 [B, C]

One graph serves every subset of the modalities: the model takes "who is there" as a mask, row by row. Batch size and
lengths (tokens, samples) are free. Where a modality is absent its inputs still have to be fed, and its encoder runs on
them for nothing; [`OnnxModel`] fills them in. Labels and kind of problem are in the file's metadata.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hf_dgl.models import CrossModalConfig
from hf_dgl.models.extras import require

from .cross_modal_pipeline import CrossModalPipeline

_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_EXAMPLE_ROWS = 3  # of the batch that the graph is traced with: not 1, which torch would take for a constant


@dataclass(frozen=True)
class ParityCheck:
    """How far the graph's logits are from torch's.

    Args:
        modalities: Which were there; the others were left out in torch, masked in the graph.
        batch_size: Rows.
        difference: The largest, absolute.
    """

    modalities: tuple[str, ...]
    batch_size: int
    difference: float


def export_onnx(
    pipeline: CrossModalPipeline,
    onnx_file: str | os.PathLike[str],
    batch_sizes: Sequence[int] = (1, 2, 5),
    tolerance: float = 1e-3,
) -> list[ParityCheck]:
    """Writes a model as ONNX, after comparing it with torch on every subset of its modalities.

    Args:
        pipeline: From `hf_dgl.pipeline(..., device="cpu")`. Adapters are merged, weights brought to float32.
        onnx_file: Where to. Models above 2 GB get a second file beside it, `<onnx_file>.data`.
        batch_sizes: To compare on; lengths of texts and audio differ, too.
        tolerance: The largest difference of a logit that is accepted.

    Returns:
        What was compared. Nothing is written if a difference is too large.

    Raises:
        ValueError: the extra `onnx` is not installed, torch cannot export an encoder, or the graph answers otherwise.

    Example:

        >>> checks = export_onnx(hf_dgl.pipeline("outputs/image_text", device="cpu"), "model.onnx")
        >>> max(check.difference for check in checks)
        6e-07
        >>> OnnxModel("model.onnx")(**processor(text=["an even digit"])).shape
        (1, 10)
    """
    require("ONNX", "onnx", *_PACKAGES)
    if pipeline.model.config.model_type != CrossModalConfig.model_type:
        raise ValueError(
            f"Got a {pipeline.model.config.model_type!r} model, expected one that hf_dgl built from encoders. For a "
            "multimodal checkpoint try `optimum-cli export onnx`."
        )
    target = Path(onnx_file)
    if not target.parent.is_dir():
        raise ValueError(f"There is no folder {str(target.parent)!r} to write {target.name!r} into. Make it first.")
    model = pipeline.model
    model = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    model = model.to(device="cpu", dtype=torch.float32).eval()
    example = _batch(pipeline, _EXAMPLE_ROWS, seed=0)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        program = _export(model, example, _free_axes(example, _batch(pipeline, _EXAMPLE_ROWS + 1, seed=1)))
        program.model.metadata_props.update(_metadata(pipeline, example))
        program.save(Path(folder, target.name))
        checks = _compare(model, pipeline, OnnxModel(Path(folder, target.name)), batch_sizes)
        worst = max(checks, key=lambda check: check.difference)
        if not worst.difference <= tolerance:
            raise ValueError(
                f"The graph does not answer as torch does: its logits differ by {worst.difference:.2g} with "
                f"{' + '.join(worst.modalities)} and {worst.batch_size} rows, expected at most {tolerance:g}. Nothing "
                "was written."
            )
        for file in sorted(Path(folder).iterdir(), reverse=True):  # `.data` first: with the graph all is there
            shutil.move(file, target.parent / file.name)
    return checks


class OnnxModel:
    """An exported model, run by onnxruntime.

    Args:
        onnx_file: From [`export_onnx`].
        providers: Of `onnxruntime.InferenceSession`, e.g. `["CUDAExecutionProvider"]`. Default: the CPU.

    Example:

        >>> model = OnnxModel("model.onnx")
        >>> logits = model(**processor(image=[image, None], text=["an even digit", "an odd digit"]))
        >>> [model.labels[index] for index in logits.argmax(axis=1)]
        ['four', 'five']
    """

    def __init__(
        self, onnx_file: str | os.PathLike[str], providers: Sequence[str] = ("CPUExecutionProvider",)
    ) -> None:
        require("ONNX", "onnx", *_PACKAGES)
        import onnxruntime

        self.session = onnxruntime.InferenceSession(os.fspath(onnx_file), providers=list(providers))
        metadata = self.session.get_modelmeta().custom_metadata_map
        if "example_shapes" not in metadata:
            raise ValueError(f"{os.fspath(onnx_file)!r} was not written by hf_dgl: use onnxruntime itself.")
        self.labels: list[str] = json.loads(metadata["labels"])
        self.problem_type: str = metadata["problem_type"]
        self._example_shapes: dict[str, list[int]] = json.loads(metadata["example_shapes"])

    def __call__(self, **modalities: Mapping[str, Any]) -> np.ndarray:
        """What the processor returns, tensors or arrays -> logits `[B, C]`. Modalities may be left out."""
        given = {
            f"{name}.{key}": np.asarray(value) for name, part in modalities.items() for key, value in part.items()
        }
        unknown = sorted(set(given) - {entry.name for entry in self.session.get_inputs()})
        if unknown or not given:
            known = sorted(entry.name for entry in self.session.get_inputs())
            raise ValueError(f"Got inputs {unknown or 'none'}, expected some of {known}.")
        num_rows = len(next(iter(given.values())))
        feed: dict[str, np.ndarray] = {}
        for entry in self.session.get_inputs():
            modality, is_present_mask = entry.name.rpartition(".")[0], entry.name.endswith(".present")
            dtype = _DTYPES[entry.type]
            if entry.name in given:
                feed[entry.name] = given[entry.name].astype(dtype)
            elif is_present_mask:
                feed[entry.name] = np.full(num_rows, modality in modalities)
            else:  # of an absent modality: read by its encoder, and then left out
                fill = np.ones if "mask" in entry.name else np.zeros
                feed[entry.name] = fill([num_rows, *self._example_shapes[entry.name][1:]], dtype)
        return self.session.run(["logits"], feed)[0]


_DTYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}


class _Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
        return self.model(**inputs).logits


def _export(model: nn.Module, example: Mapping[str, Mapping[str, Tensor]], axes: Any) -> Any:
    names = [f"{name}.{key}" for name, part in example.items() for key in part]
    with _quiet(), torch.no_grad():
        try:
            return torch.onnx.export(
                _Logits(model).eval(),
                (),
                kwargs={"inputs": example},
                dynamic_shapes={"inputs": axes},
                input_names=names,
                output_names=["logits"],
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise ValueError(
                f"torch {torch.__version__} cannot export this model: {reason} An encoder's code in transformers may "
                "branch on its data or its batch size; `--traceback` shows where."
            ) from error


def _free_axes(example: Any, other: Any) -> dict[str, dict[str, dict[int, Any]]]:
    """Axes whose sizes differ between two batches of different rows: batch size, tokens, samples."""
    return {
        name: {
            key: {
                axis: torch.export.Dim.DYNAMIC
                for axis, sizes in enumerate(zip(value.shape, other[name][key].shape, strict=True))
                if sizes[0] != sizes[1]
            }
            for key, value in part.items()
        }
        for name, part in example.items()
    }


def _batch(pipeline: CrossModalPipeline, num_rows: int, seed: int) -> dict[str, dict[str, Tensor]]:
    """Noise in the form of every modality, of many lengths; rows lack a modality only where `present` says so."""
    random = np.random.default_rng(seed)
    columns: dict[str, list[Any]] = {}
    for name in pipeline.modalities:
        rate = pipeline.processor.sampling_rate(name)
        if pipeline.kind(name) == "text":
            lengths = random.integers(2, 12, num_rows) + 3 * seed
            columns[name] = [" ".join(random.choice(list("abcdefgh"), length)) for length in lengths]
        elif rate is not None:
            lengths = (rate * (0.3 + 0.2 * seed + 0.3 * random.random(num_rows))).astype(int)
            columns[name] = [random.standard_normal(length).astype(np.float32) for length in lengths]
        else:
            pixels = random.integers(0, 256, (num_rows, 48, 48, 3), dtype=np.uint8)
            columns[name] = [Image.fromarray(image) for image in pixels]
    batch = pipeline.processor(**columns)
    # A tensor of its own each: what is one tensor in the example, torch.export takes for one input.
    return {name: {**part, "present": torch.ones(num_rows, dtype=torch.bool)} for name, part in batch.items()}


def _compare(
    model: nn.Module, pipeline: CrossModalPipeline, exported: OnnxModel, batch_sizes: Sequence[int]
) -> list[ParityCheck]:
    names = pipeline.modalities
    subsets = [subset for size in range(1, len(names) + 1) for subset in itertools.combinations(names, size)]
    checks = []
    for seed, (subset, size) in enumerate(itertools.product(subsets, batch_sizes), start=2):
        batch = {name: part for name, part in _batch(pipeline, size, seed % 5).items() if name in subset}
        if len(subset) > 1 and size > 1:  # some rows lack the first, too
            batch[subset[0]]["present"] = torch.arange(size) % 2 == 0
        with torch.no_grad():
            expected = model(**batch).logits.numpy()
        checks.append(ParityCheck(subset, size, float(np.abs(exported(**batch) - expected).max())))
    return checks


def _metadata(pipeline: CrossModalPipeline, example: Mapping[str, Mapping[str, Tensor]]) -> dict[str, str]:
    config = pipeline.model.config
    shapes = {f"{name}.{key}": list(value.shape) for name, part in example.items() for key, value in part.items()}
    labels = [str(config.id2label[index]) for index in range(config.num_labels)]
    problem_type = str(config.problem_type or "single_label_classification")
    return {"labels": json.dumps(labels), "problem_type": problem_type, "example_shapes": json.dumps(shapes)}


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of torchvision, which we do not use, and of torch's own future."""
    logger = logging.getLogger("torch.onnx._internal.exporter")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
