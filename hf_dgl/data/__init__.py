"""From data sets to batches: sources, labels, media files, the collator, and offline sample data."""

from .collator import CrossModalCollator
from .columns import LABEL_COLUMN, ROW_COLUMN
from .labels import LabelSpec, expect_dataset
from .media import load_audio, load_image
from .samples import SAMPLES, load_sample
from .sources import load_data

__all__ = [
    "LABEL_COLUMN",
    "ROW_COLUMN",
    "SAMPLES",
    "CrossModalCollator",
    "LabelSpec",
    "expect_dataset",
    "load_audio",
    "load_data",
    "load_image",
    "load_sample",
]
