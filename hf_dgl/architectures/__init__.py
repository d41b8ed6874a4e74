"""Where the modalities of known architectures live: one table, class name -> [`Architecture`].

| file | models |
|---|---|
| `two_stream.py` | one encoder per modality, then a fusion: our own model, FLAVA, BridgeTower, LXMERT |
| `vision_language.py` | pictures and videos among the tokens of a language model, the fusion: Qwen-VL, Gemma |
| `audio_language.py` | sounds among them, and three kinds: Qwen2-Audio, Voxtral, the Omni thinkers |
| `seq2seq.py` | the same with an encoder that reads and a decoder that answers: T5Gemma 2, Florence-2 |
| `queries.py` | features in front of the text, through query tokens: BLIP-2, InstructBLIP, GIT |
| `single_stream.py` | embeddings, then one transformer over all modalities: ViLT, VisualBERT, LayoutLMv3, TVP |
| `interleaved.py` | cross-attention inside the text encoder: BLIP, BLIP-2, Mllama, IDEFICS |
| `refused.py` | models for which a modality alone has no loss, and what to do instead: CLIP, CLAP |
"""

from .architecture import Architecture
from .attach import disentangle
from .lookup import ARCHITECTURES, architecture_of, modalities_of

__all__ = ["ARCHITECTURES", "Architecture", "architecture_of", "disentangle", "modalities_of"]
