"""The method, in pure torch: disentangled gradients for any module, checks, baselines. No Hugging Face in here.

`disentangle.py` says what it is; `engine.py`, `passes.py` and `cut.py` do it; `dataflow/` finds the modalities
of an unknown model. Known classes are looked up in `hf_dgl.architectures`; training with it is `hf_dgl.training`.
"""

from .disentangle import Disentangled
from .modalities import Modality

__all__ = ["Disentangled", "Modality"]
