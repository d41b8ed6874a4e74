"""Pictures and videos among the tokens of a language model. One class, one row."""

from __future__ import annotations

from .architecture import Architecture
from .sequence import READ_FROM_TEXT, classifies, writes

_TOWER = ("model.vision_tower", "model.multi_modal_projector")
_CONNECTED = ("model.vision_model", "model.connector")
_VISUAL = ("model.visual",)
_PROJECTED = ("model.vision_model", "model.projector")
_MERGED = ("model.vision_tower", "model.merger")
_ALIGNED = ("model.vision_model", "model.aligner")
_NEWLINE = (r"model\.image_newline$",)  # a learned line break between tiles, put in behind the projection
_SEPARATED = (r"model\.view_separator$",)  # learned too, behind all tiles of a picture
_TEXT_MODEL = "model.text_model.embed_tokens"
_MODERN = "model.text_model.embeddings.tok_embeddings"
_PADDING = "All-zero `pixel_values` are dropped as padding by the model."

_CLASSIFIERS = {
    "ModernVBertForSequenceClassification": classifies(_MODERN, note=_PADDING, image=_CONNECTED),
    "UltraVBertForSequenceClassification": classifies(_TEXT_MODEL, note=_PADDING, image=_CONNECTED),
    "ModernVBertForMaskedLM": writes(_MODERN, note=_PADDING, image=_CONNECTED),
    "ModernVBertForTokenClassification": classifies(_MODERN, note=_PADDING, image=_CONNECTED),
    "UltraVBertForMaskedLM": writes(_TEXT_MODEL, note=_PADDING, image=_CONNECTED),
    "UltraVBertForTokenClassification": classifies(_TEXT_MODEL, note=_PADDING, image=_CONNECTED),
    "Gemma3ForSequenceClassification": classifies(image=_TOWER, **READ_FROM_TEXT),
    "Qwen3_5ForSequenceClassification": classifies(image=_VISUAL, **READ_FROM_TEXT),
}

_WRITERS = {
    "LlavaForConditionalGeneration": writes(image=_TOWER),
    "LlavaNextForConditionalGeneration": writes(image=_TOWER, parameters=_NEWLINE),
    "LlavaNextVideoForConditionalGeneration": writes(image=_TOWER, parameters=_NEWLINE),
    "VideoLlavaForConditionalGeneration": writes(
        image=("model.video_tower", "model.image_tower", "model.multi_modal_projector")
    ),
    "LlavaOnevisionForConditionalGeneration": writes(image=_TOWER, parameters=_NEWLINE),
    "Gemma3ForConditionalGeneration": writes(image=_TOWER),
    "PaliGemmaForConditionalGeneration": writes(image=_TOWER),
    "SmolVLMForConditionalGeneration": writes(_TEXT_MODEL, image=_CONNECTED),
    "Idefics2ForConditionalGeneration": writes(_TEXT_MODEL, image=_CONNECTED),
    "Idefics3ForConditionalGeneration": writes(_TEXT_MODEL, image=_CONNECTED),
    "Qwen2VLForConditionalGeneration": writes(image=_VISUAL),
    "Qwen2_5_VLForConditionalGeneration": writes(image=_VISUAL),
    "Qwen3VLForConditionalGeneration": writes(image=_VISUAL),
    "Qwen3VLMoeForConditionalGeneration": writes(image=_VISUAL),
    "Qwen3_5ForConditionalGeneration": writes(image=_VISUAL),
    "Qwen3_5MoeForConditionalGeneration": writes(image=_VISUAL),
    "Qwen4ExpForConditionalGeneration": writes(image=_VISUAL),
    "Cosmos3OmniForConditionalGeneration": writes(image=_VISUAL),
    "Cosmos3EdgeForConditionalGeneration": writes(image=("model.visual", "model.projector")),
    "Glm4vForConditionalGeneration": writes(image=_VISUAL),
    "Glm46VForConditionalGeneration": writes(image=_VISUAL),
    "Glm4vMoeForConditionalGeneration": writes(image=_VISUAL),
    "GlmOcrForConditionalGeneration": writes(image=_VISUAL),
    "Glm5NextForConditionalGeneration": writes(image=_VISUAL),
    "Exaone4_5_ForConditionalGeneration": writes(image=_VISUAL),
    "PaddleOCRVLForConditionalGeneration": writes(image=("model.visual", "model.projector")),
    "CohereCompassForConditionalGeneration": writes(image=_VISUAL),
    "MiniMaxM3SparseForConditionalGeneration": writes(image=_TOWER),
    "Lfm3VlForConditionalGeneration": writes(image=_TOWER),
    "HunYuanVLForConditionalGeneration": writes(
        image=("model.vision_tower",), note="One picture per row: nothing but the text keeps two apart."
    ),
    "Inkling2ForConditionalGeneration": writes(image=("model.vision_tower",)),
    "Ernie4_5_VLMoeForConditionalGeneration": writes(image=("model.vision_tower", "model.resampler_model")),
    "MuseGlimmerForConditionalGeneration": writes(
        image=("model.vision_tower", "model.vision_adapter", "model.vision_projection")
    ),
    "Kimi_K25ForConditionalGeneration": writes(image=("model.vision_tower", "model.mm_projector")),
    "HyperCLOVAXVisionV2ForConditionalGeneration": writes(image=_PROJECTED),
    "VideoLlama3ForConditionalGeneration": writes(image=_PROJECTED),
    "MiniCPMV4_6ForConditionalGeneration": writes(image=_MERGED),
    "MiniCPMV4_7ForConditionalGeneration": writes(image=_MERGED),
    "MiniCPMOcrForConditionalGeneration": writes(image=_MERGED),
    "InternVLForConditionalGeneration": writes(image=_TOWER),
    "QianfanOCRForConditionalGeneration": writes(image=_TOWER),
    "AyaVisionForConditionalGeneration": writes(image=_TOWER),
    "Cohere2VisionForConditionalGeneration": writes(image=_TOWER),
    "GotOcr2ForConditionalGeneration": writes(image=_TOWER),
    "VipLlavaForConditionalGeneration": writes(image=_TOWER),
    "FuyuForCausalLM": writes(image=("model.vision_embed_tokens",)),
    "FastVlmForConditionalGeneration": writes(image=_TOWER),
    "PerceptionLMForConditionalGeneration": writes(image=_TOWER),
    "AriaForConditionalGeneration": writes(image=_TOWER),
    "Mistral3ForConditionalGeneration": writes(image=_TOWER),
    "Lfm2VlForConditionalGeneration": writes(image=_TOWER),
    "LightOnOcrForConditionalGeneration": writes(image=("model.vision_encoder", "model.vision_projection")),
    "Ovis2ForConditionalGeneration": writes(image=("model.vision_tower", "model.visual_embeddings_table")),
    "DeepseekVLForConditionalGeneration": writes(image=_ALIGNED),
    "DeepseekVLHybridForConditionalGeneration": writes(  # reads hidden states of its towers: both end in the aligner
        image=("model.aligner",), parameters=(r"model\.(vision_model|high_res_vision_\w+)(\.|$)",)
    ),
    "JanusForConditionalGeneration": writes(image=_ALIGNED),
    "Molmo2ForConditionalGeneration": writes(image=_TOWER),
    "MistralLarge4ForConditionalGeneration": writes(image=_TOWER),
    "Step3p7ForConditionalGeneration": writes(image=("model.vision_model", "model.multi_modal_projector")),
    "DeepseekOcr2ForConditionalGeneration": writes(image=_TOWER, parameters=_SEPARATED),
    "UnlimitedOcrForConditionalGeneration": writes(image=_TOWER, parameters=(*_NEWLINE, *_SEPARATED)),
    "Granite4VisionForConditionalGeneration": writes(
        image=("model.vision_tower", "model.layerwise_projectors.*", "model.spatial_projectors.*"), parameters=_NEWLINE
    ),
    "GraniteDoclingForConditionalGeneration": writes(_TEXT_MODEL, image=("model.vision_model",)),
    "NeoMMEForMaskedLM": writes(("model.embed_tokens", "model.value_embeddings"), image=("model.patch_embeddings",)),
    "Llama4ForConditionalGeneration": writes(
        "language_model.model.embed_tokens", image=("vision_model", "multi_modal_projector")
    ),
}

ROWS: dict[str, Architecture] = {**_CLASSIFIERS, **_WRITERS}
