"""The model that we build from any encoders, in Hugging Face's own form, known to the Auto classes; heads and loading.

Its files travel with every saved model, so they import nothing of hf_dgl but one another. Where the modalities of
other people's models live is in `hf_dgl.architectures`; answers of a trained model are `hf_dgl.inference`.
"""

from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoProcessor

from .configuration_cross_modal import FUSION_TYPES, CrossModalConfig
from .flava import FlavaForSequenceClassification
from .matching import Blip2ForImageTextMatching, BlipForImageTextMatching
from .modeling_cross_modal import CrossModalForSequenceClassification, CrossModalModel, CrossModalPreTrainedModel
from .processing_cross_modal import CrossModalProcessor, default_processor, train_tokenizer

AutoConfig.register("cross_modal", CrossModalConfig, exist_ok=True)
AutoModel.register(CrossModalConfig, CrossModalModel, exist_ok=True)
AutoModelForSequenceClassification.register(CrossModalConfig, CrossModalForSequenceClassification, exist_ok=True)
AutoProcessor.register(CrossModalConfig, CrossModalProcessor, exist_ok=True)

# What is saved carries the files of this folder: Transformers alone can load it then (`trust_remote_code=True`). So
# they import nothing of hf_dgl but one another.
CrossModalConfig.register_for_auto_class()
CrossModalModel.register_for_auto_class("AutoModel")
CrossModalForSequenceClassification.register_for_auto_class("AutoModelForSequenceClassification")
CrossModalProcessor.register_for_auto_class("AutoProcessor")

__all__ = [
    "FUSION_TYPES",
    "Blip2ForImageTextMatching",
    "BlipForImageTextMatching",
    "CrossModalConfig",
    "CrossModalForSequenceClassification",
    "CrossModalModel",
    "CrossModalPreTrainedModel",
    "CrossModalProcessor",
    "FlavaForSequenceClassification",
    "default_processor",
    "train_tokenizer",
]
