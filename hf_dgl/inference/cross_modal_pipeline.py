"""Any subset of a model's modalities in, labels and scores out: a `transformers.Pipeline`.

Upstream's class brings devices, dtypes, workers, streams of inputs and `batch_size`. Ours says what a row is, how rows
become a batch (upstream pads flat tensors; our model's are grouped by modality), and what an answer looks like.

    row -> preprocess (fetch, decode) -> _collate (processor) -> _forward (fused, each modality alone) -> postprocess
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import datasets
import torch
from torch.utils.data import DataLoader, Subset
from transformers import Pipeline, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import PipelineDataset, PipelineIterator

from hf_dgl.architectures import disentangle, modalities_of
from hf_dgl.data import ROW_COLUMN
from hf_dgl.data.collator import decode_value
from hf_dgl.data.columns import is_missing
from hf_dgl.data.limits import audio_limit, audio_windows
from hf_dgl.method.cut import Cut
from hf_dgl.method.engine import handle_on
from hf_dgl.method.modalities import did_you_mean
from hf_dgl.method.outputs import entry, map_tensors
from hf_dgl.models import CrossModalConfig, CrossModalForSequenceClassification, CrossModalProcessor
from hf_dgl.models.finding import check_source
from hf_dgl.models.native import FeatureArray, load_trained
from hf_dgl.models.whole import told_if_damaged

from .devices import check_device
from .fetching import located
from .labelled import labelled

TASK = "cross-modal-classification"
"""Name under which `transformers.pipeline` knows [`CrossModalPipeline`], once this module is imported."""

ON_ERROR = ("raise", "skip")
LONG_AUDIO = ("crop", "windows")
_PREPROCESS, _FORWARD = ("timeout", "folder", "long_audio"), ("on_error", "unimodal")


class CrossModalPipeline(Pipeline):
    """Labels examples with a fine-tuned model, and says what each modality alone would have answered.

    Args:
        model: A `CrossModalForSequenceClassification`, or a `PeftModel` around one.
        processor: The model's own.
        **kwargs: Of `transformers.Pipeline`: `device` (default: the accelerator if there is one), `batch_size`,
            `num_workers`; and defaults for what a call takes: `top_k`, `on_error`, ...

    Raises:
        ValueError: if the model is of another kind.

    Example:

        >>> pipeline = CrossModalPipeline.from_pretrained("outputs/image_text")
        >>> pipeline(image="digit.png", text="an even digit")
        {'label': 'four', 'score': 0.9, 'scores': {...}, 'modalities': {'image': {'label': 'four', ...}, 'text': ...}}
        >>> pipeline(text=["an even digit", "an odd digit"])  # no image: fine; two rows: a list of two answers
        >>> for answer in pipeline(dataset, batch_size=32, num_workers=4):  # one by one, as they come
        ...     print(answer["label"])
    """

    model: Any
    processor: Any
    _load_processor: Any = True  # what `transformers.pipeline` loads for us
    _load_tokenizer: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _load_video_processor: Any = False

    def __init__(self, model: Any, processor: CrossModalProcessor | None = None, **kwargs: Any) -> None:
        _check_is_ours(model.config.model_type, type(model).__name__)
        if processor is None:
            raise ValueError("A CrossModalPipeline needs the model's processor: CrossModalPipeline(model, processor).")
        super().__init__(model=model.eval(), processor=processor, **{"task": TASK, **kwargs})
        self._cuts: dict[str, Cut] = {}
        self.tokenizer = None  # upstream takes the processor's, which has one per modality

    @classmethod
    def from_pretrained(
        cls,
        model_id: str,
        device: str | int | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        **kwargs: Any,
    ) -> CrossModalPipeline:
        """Load a model and its processor.

        Args:
            model_id: A folder that `hf-dgl train` wrote (a whole model, or adapters), or a Hub id.
            device: Default: the accelerator if there is one, else the CPU.
            dtype: Of the weights, e.g. `"bfloat16"`. Default: as they were saved.
            batch_size, num_workers: Defaults for calls.
            **kwargs: For both `from_pretrained` (`revision`, `token`, `trust_remote_code`, ...).

        Raises:
            ValueError: if it is a model of another kind, or the device or dtype is not there.
        """
        check_source(model_id)
        with told_if_damaged(model_id):
            config, _ = PreTrainedConfig.get_config_dict(model_id, **kwargs)
        if device is not None:
            check_device(device)
        if isinstance(dtype, str) and not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"Got dtype {dtype!r}, expected float32, bfloat16 or float16.")
        kind = next((kind for kind in cls.__subclasses__() if kind._is_for(config)), cls)
        model, processor = load_trained(model_id, **kwargs)
        if dtype is not None:
            model = model.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
        return kind(model, cast(Any, processor), device=device, batch_size=batch_size, num_workers=num_workers)

    @classmethod
    def _is_for(cls, config: dict[str, Any]) -> bool:
        """Whether this kind of pipeline is the one for a model with this config (of adapters: empty)."""
        return not config or config.get("model_type") == CrossModalConfig.model_type

    @property
    def modalities(self) -> list[str]:
        """Names of the modalities that the model knows."""
        return list(self.processor.modalities)

    @property
    def needs_all(self) -> bool:
        """Whether every row must have all modalities: so in checkpoints with a fusion of their own."""
        return bool(getattr(self.processor, "needs_all", False))

    def kind(self, modality: str) -> str:
        """`"text"`, `"audio"`, `"image"` or `"array"`: what a modality's values are, whatever it is called."""
        if isinstance(self.processor.processors[modality], FeatureArray):
            return "array"
        if self.processor.sampling_rate(modality) is not None:
            return "audio"
        is_text = isinstance(self.processor.processors[modality], PreTrainedTokenizerBase)
        return "text" if is_text else "image"

    def __call__(self, inputs: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Label one example, or many.

        Args:
            inputs: A row (`{"image": ..., "text": ...}`; other keys are not read), or a list, a generator, a
                `datasets.Dataset` or a torch `Dataset` of rows. Or give the modalities by name:
            **kwargs: By modality its value, or a list of values with None where a row lacks the modality. An image: a
                file, an http(s) address, a PIL image, a uint8 array. An audio: likewise, a 1-D float array at the
                processor's sampling rate, or `{"array": ..., "sampling_rate": ...}`. A text: a string. And:
                - top_k: `scores` holds only the so many best, best first. Default: all, in the model's order.
                - unimodal: False leaves out what each modality alone says, which takes half of the time.
                - on_error: `"skip"`: a row that cannot be read is answered by `{"error": message}`. Default `"raise"`.
                - folder: what relative paths are relative to. Default: the working directory.
                - long_audio: of audio that is longer than training crops it to (or than the encoder can take) `"crop"`
                  (default) reads the middle, as evaluation does; `"windows"` reads all of it, piece by piece, and
                  averages the logits.
                - timeout: seconds that a server may be silent. Default: 10.
                - batch_size, num_workers: as upstream. Default: 1, except a batch given by name: 8; and no workers.

        Returns:
            Per example `label`, `score`, `scores` (label -> probability), and `modalities`: the same by each modality
            that was given, alone. For a multi-label model `label` is the list of labels with a probability of at least
            one half; for regression there is a `score` (or, with several outputs, `scores`) only. One answer for one
            row; a list for lists; an iterator, read as it goes, for data sets and generators.

        Raises:
            ValueError: on an unknown modality, lists of different lengths, an example without any modality, a file or
                address that cannot be read (says which, and of which row).
        """
        named = {name: kwargs.pop(name) for name in list(kwargs) if name in self.modalities}
        if inputs is not None and named:
            raise ValueError(f"Got rows and {list(named)}: give either rows, or their modalities by name.")
        if inputs is None:
            self._sanitize_parameters(
                **{key: kwargs[key] for key in kwargs if key not in ("batch_size", "num_workers")}
            )
            inputs = self._rows(named)
            if isinstance(inputs, list) and self._batch_size is None:
                kwargs.setdefault("batch_size", 8)
        elif isinstance(inputs, list) and not inputs:
            return []
        elif isinstance(inputs, datasets.Dataset):
            inputs = Subset(inputs, range(len(inputs)))  # which upstream knows as a data set
        elif isinstance(inputs, datasets.IterableDataset):
            inputs = (row for row in inputs)
        return super().__call__(inputs, **kwargs)

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """Saves model and processor; [`pipeline`] and `transformers.pipeline` load them."""
        # Upstream's would save this class, too, so that `transformers` runs it from there; and no processor.
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def _rows(self, columns: Mapping[str, Any]) -> dict[str, Any] | list[dict[str, Any]]:
        """One row, or rows that know their number if any value is a list."""
        lengths = {name: len(values) for name, values in columns.items() if isinstance(values, list)}
        if not lengths:
            return dict(columns)
        lengths |= {name: 1 for name in columns if name not in lengths}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"Every modality needs as many entries as the others, got {lengths}.")
        lists = [values if isinstance(values, list) else [values] for values in columns.values()]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*lists, strict=True)]
        if not rows:
            raise ValueError(f"Every example needs at least one of the modalities {self.modalities}, got no rows.")
        return [{**row, ROW_COLUMN: number} for number, row in enumerate(rows)]

    # ------------------------------------------------------------------------------- what upstream's class asks for

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        known = [*_PREPROCESS, *_FORWARD, "top_k"]
        for name in kwargs:
            if name not in known:
                names = [*self.modalities, *known, "batch_size", "num_workers"]
                raise ValueError(
                    f"Unknown modality {name!r}: this model has {self.modalities}{did_you_mean(name, names)}"
                )
        if kwargs.get("on_error", "raise") not in ON_ERROR:
            raise ValueError(f"on_error: expected one of {list(ON_ERROR)}, got {kwargs['on_error']!r}.")
        if kwargs.get("long_audio", "crop") not in LONG_AUDIO:
            raise ValueError(f"long_audio: expected one of {list(LONG_AUDIO)}, got {kwargs['long_audio']!r}.")
        top_k = kwargs.get("top_k")
        if top_k is not None and (not isinstance(top_k, int) or top_k < 1):
            raise ValueError(f"top_k: expected a number of labels, at least 1, got {top_k!r}.")
        groups = (_PREPROCESS, _FORWARD, ("top_k",))
        preprocess, forward, postprocess = [{key: kwargs[key] for key in group if key in kwargs} for group in groups]
        return preprocess, forward, postprocess

    def run_single(self, inputs: Any, *params: Any) -> Any:
        return next(self.get_iterator([inputs], 0, 1, *params))

    def get_iterator(
        self,
        inputs: Iterable[Any],
        num_workers: int,
        batch_size: int,
        preprocess_params: dict[str, Any],
        forward_params: dict[str, Any],
        postprocess_params: dict[str, Any],
    ) -> Iterator[Any]:
        """Upstream's, but with our batches, and `postprocess` once per batch."""
        is_sized = isinstance(inputs, Sized)
        rows: Any = (PipelineDataset if is_sized else PipelineIterator)(inputs, self.preprocess, preprocess_params)
        num_workers = num_workers if is_sized else 0  # each worker would read a stream from its start
        loader = DataLoader(rows, num_workers=num_workers, batch_size=batch_size, collate_fn=self._collate)
        for batch in loader:
            yield from self.postprocess(self.forward(batch, **forward_params), **postprocess_params)

    def preprocess(  # type: ignore[override]
        self, input_: Any, timeout: float = 10.0, folder: str | Path | None = None, long_audio: str = "crop"
    ) -> dict[str, Any]:
        """A row -> `{"values": what each modality's processor takes, once per window, "error": None or why not}`."""
        try:
            values = self._decode(input_, timeout, folder, long_audio == "windows")
        except ValueError as error:  # raised in `_forward`: from a worker it would come with that one's traceback
            return {"values": [], "error": str(error)}
        count = max(len(pieces) for pieces in values.values())
        windows = [{name: pieces[k * len(pieces) // count] for name, pieces in values.items()} for k in range(count)]
        return {"values": windows, "error": None}

    def _decode(self, row: Any, timeout: float, folder: str | Path | None, whole: bool) -> dict[str, list[Any]]:
        """Per modality one value, or (long audio, if the `whole` is wanted) several."""
        if not isinstance(row, Mapping):
            example = dict.fromkeys(self.modalities, "...")
            raise ValueError(f"A row is a dictionary by modality, e.g. {example}; got {type(row).__name__}.")
        where = f"Row {row[ROW_COLUMN]}" if ROW_COLUMN in row else ""
        values = {}
        for name in self.modalities:
            value = row.get(name)
            if is_missing(value):
                continue
            try:
                values[name] = self._pieces(name, value, timeout, folder, whole)
            except ValueError as error:
                reason = error if folder is not None else getattr(error, "reason", error)  # advice is for data files
                raise ValueError(f"{where}{', ' if where else ''}{name!r}: {reason}") from error
        if not values:
            found = [key for key in row if key != ROW_COLUMN]
            raise ValueError(
                f"{where}{': ' if where else ''}Every example needs at least one of the modalities {self.modalities}, "
                f"got {found or 'nothing'}{' without a value' if set(found) & set(self.modalities) else ''}."
            )
        return values

    def _pieces(self, name: str, value: Any, timeout: float, folder: str | Path | None, whole: bool) -> list[Any]:
        kind = self.kind(name)
        if kind in ("image", "audio"):
            value = located(value, timeout, folder)
        seconds = audio_limit(self.processor.processors[name]) if whole and kind == "audio" else None
        if seconds is None:
            return [decode_value(self.processor, name, value)]
        rate = self.processor.sampling_rate(name)
        assert rate is not None
        samples = decode_value(self.processor, name, value, max_audio_seconds=float("inf"))
        return audio_windows(samples, max(1, round(seconds * rate)))

    def _collate(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        windows = [item["values"] for item in items if item["error"] is None]
        rows = [row for of_one in windows for row in of_one]
        return {
            "inputs": self._batch(rows) if rows else {},
            "num_windows": [len(of_one) for of_one in windows],
            "given": [list(of_one[0]) for of_one in windows],
            "errors": [item["error"] for item in items],
        }

    def _batch(self, rows: list[dict[str, Any]]) -> Any:
        return self.processor(**{name: [row.get(name) for row in rows] for name in self.modalities})

    def _forward(  # type: ignore[override]
        self, input_tensors: Any, on_error: str = "raise", unimodal: bool = True
    ) -> dict[str, Any]:
        errors = [error for error in input_tensors["errors"] if error is not None]
        if errors and on_error == "raise":
            raise ValueError(errors[0])
        inputs = map_tensors(
            lambda value: value.to(self.dtype) if value.is_floating_point() else value, input_tensors["inputs"]
        )
        rest = {"given": input_tensors["given"], "errors": input_tensors["errors"]}
        if not inputs:  # no row of this batch could be read
            return {"fused": None, "alone": {}, **rest}
        fused, alone = self._opinions(inputs, unimodal)
        counts = input_tensors["num_windows"]
        fused = _averaged(fused, counts)
        if not fused.isfinite().all():
            raise ValueError(
                f"The model's scores are NaN or infinite. Its weights are damaged, or {self.dtype} is too narrow for "
                "them: load it again, with another `dtype`; else train it again."
            )
        return {"fused": fused, "alone": {n: _averaged(part, counts) for n, part in alone.items()}, **rest}

    def _opinions(self, inputs: Any, unimodal: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Logits from all modalities, and (if wanted) from each alone; each encoder runs once."""
        if not unimodal:
            return _logits(self.model(**inputs)), {}
        with ExitStack() as stack:
            trained = handle_on(self.model)  # in training, maybe
            handle = trained or stack.enter_context(disentangle(self.model, modalities_of(self.model)))
            handle.cuts.update(self._cuts)  # found once, not for every batch
            stack.enter_context(handle.unimodal_outputs())
            output = self.model(**inputs)
            self._cuts = handle.cuts
        return _logits(output), {name: _logits(part) for name, part in entry(output, "unimodal").items()}

    def postprocess(self, model_outputs: Any, top_k: int | None = None) -> list[dict[str, Any]]:  # type: ignore[override]
        """What the model says of a batch -> one answer per row."""
        fused = [] if model_outputs["fused"] is None else labelled(model_outputs["fused"], self.model.config, top_k)
        alone = {name: labelled(logits, self.model.config, top_k) for name, logits in model_outputs["alone"].items()}
        for index, (answer, given) in enumerate(zip(fused, model_outputs["given"], strict=True)):
            if alone:
                answer["modalities"] = {name: alone[name][index] for name in given}
        answers = iter(fused)
        return [next(answers) if error is None else {"error": error} for error in model_outputs["errors"]]


PIPELINE_REGISTRY.register_pipeline(
    TASK, pipeline_class=CrossModalPipeline, pt_model=CrossModalForSequenceClassification, type="multimodal"
)


def _averaged(logits_WC: torch.Tensor, num_windows: list[int]) -> torch.Tensor:
    """Logits of windows (W) -> their mean for each row."""
    return torch.stack([of_one.mean(dim=0) for of_one in logits_WC.split(num_windows)])


def _logits(output: Any) -> Any:
    found = entry(output, "logits")
    return entry(output, "question_answering_score") if found is None else found  # LXMERT's word


def _check_is_ours(model_type: str | None, what: str) -> None:
    if model_type != CrossModalConfig.model_type:
        raise ValueError(
            f"{what} is a {model_type!r} model; expected one that hf_dgl built from encoders (model type "
            f"{CrossModalConfig.model_type!r}). For a model with a fusion of its own use its class in transformers: "
            "DGL leaves nothing in it."
        )
