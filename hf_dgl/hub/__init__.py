"""What leaves this machine: which files may be uploaded and which never, the model card, `hf-dgl push`.

Loading from the Hub is `hf_dgl.models` and `hf_dgl.inference`.
"""

from .model_card import create_model_card
from .publish import push, push_space

__all__ = ["create_model_card", "push", "push_space"]
