"""From data sets to batches: sources, labels, media files, the collator, and offline sample data."""

from .collator import CrossModalCollator
from .columns import LABEL_COLUMN, ROW_COLUMN
from .labels import LabelSpec, expect_dataset
from .media import load_audio, load_image
from .native_collator import NativeCollator
from .preparation import encode_labels, prepare_splits
from .report import DataReport, inspect_data
from .samples import SAMPLES, load_sample
from .sources import load_data

__all__ = [
    "LABEL_COLUMN",
    "ROW_COLUMN",
    "SAMPLES",
    "CrossModalCollator",
    "DataReport",
    "LabelSpec",
    "NativeCollator",
    "encode_labels",
    "expect_dataset",
    "inspect_data",
    "load_audio",
    "load_data",
    "load_image",
    "load_sample",
    "prepare_splits",
]
