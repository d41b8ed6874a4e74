"""From data sets to batches: sources, labels, splits, media files, the collator, and offline sample data.

It ends with the batch that a model's forward takes. Processors are in `hf_dgl.models`; which data a run takes is
written down in `hf_dgl.recipe`; what is asked of data before a run (`hf-dgl data`) is in `report.py` and `preview.py`.
"""

from .audio import load_audio
from .collator import CrossModalCollator
from .columns import LABEL_COLUMN, ROW_COLUMN, expect_dataset
from .labels import LabelSpec
from .media import load_image
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
