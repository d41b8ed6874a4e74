"""Where the modalities of an unknown model live, from one batch: what `modalities="auto"` does."""

from .proposal import Proposal
from .propose import find_modalities, propose

__all__ = ["Proposal", "find_modalities", "propose"]
