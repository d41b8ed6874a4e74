"""Models for which a modality alone has no loss, and what to do instead."""

from __future__ import annotations

from .architecture import Architecture

_OWN_HEAD = (
    "Use CrossModalForSequenceClassification.from_encoders with its towers and a labelled task, e.g. "
    'from_encoders({"image": "openai/clip-vit-base-patch32", "text": "openai/clip-vit-base-patch32"}).'
)
_CONTRASTIVE = (
    "the contrastive loss compares the modalities and is undefined for one alone (the norm of an absent one is 0). "
    f"{_OWN_HEAD}"
)
_NO_LOSS = "the base model computes no loss. Use {instead}, which has one."
_ONE_INPUT = (
    "it has one input modality ({modality}); its text is the answer that it predicts, so there is nothing to "
    "disentangle. Train it with transformers.Seq2SeqTrainer, or fuse its encoder with a second modality by "
    "CrossModalForSequenceClassification.from_encoders."
)


def _refused(reason: str, *names: str) -> dict[str, Architecture]:
    return {name: Architecture(refused=reason) for name in names}


ROWS: dict[str, Architecture] = {
    **_refused(
        _CONTRASTIVE,
        *("CLIPModel", "SiglipModel", "Siglip2Model", "ChineseCLIPModel", "AltCLIPModel", "MetaClip2Model"),
        *("VisionTextDualEncoderModel", "BlipModel", "ClapModel", "XCLIPModel", "AlignModel", "Tipsv2Model"),
        *("OwlViTModel", "Owlv2Model", "GroupViTModel", "PeAudioModel", "PeVideoModel", "PeAudioVideoModel"),
        *("CLIPSegModel", "VideoPrismClipModel"),
    ),
    **_refused(
        "the contrastive loss compares the modalities and is undefined for one alone. Use "
        "BridgeTowerForImageAndTextRetrieval (image-text matching) on the same checkpoint.",
        "BridgeTowerForContrastiveLearning",
    ),
    **_refused(
        "its losses include a contrastive one, which compares the modalities and is undefined for one alone. Use "
        "hf_dgl.models.FlavaForSequenceClassification on the same checkpoint.",
        "FlavaForPreTraining",
    ),
    **_refused(
        "the text only prompts the image's decoder, and the image tower runs under torch.no_grad, so there is no "
        f"image encoder to train. {_OWN_HEAD}",
        "CLIPSegForImageSegmentation",
    ),
    **_refused(
        "its pictures become codes by an argmin, which passes no gradient, and the codes are read from the words' "
        "table: there is no image encoder to train. Use a class with a vision tower, e.g. "
        "Qwen2_5_VLForConditionalGeneration.",
        "ChameleonForConditionalGeneration",
        "Emu3ForConditionalGeneration",
        "GlmImageForConditionalGeneration",
    ),
    **_refused(
        "each token of its text is added to one frame of the sound and is the answer that it predicts: neither goes "
        "without the other. Use VoxtralForConditionalGeneration, which reads a prompt beside the sound.",
        "VoxtralRealtimeForConditionalGeneration",
    ),
    **_refused(
        "it computes no loss (it raises on `labels`) and its modalities have no encoders but preprocessors. Use "
        "CrossModalForSequenceClassification.from_encoders with one encoder per modality.",
        "PerceiverForMultimodalAutoencoding",
        "PerceiverModel",
    ),
    **_refused(
        "it takes no labels. Use hf_dgl.models.BlipForImageTextMatching on the same checkpoint.",
        "BlipForImageTextRetrieval",
    ),
    **_refused(
        "it takes no labels. Use hf_dgl.models.Blip2ForImageTextMatching on the same checkpoint.",
        "Blip2ForImageTextRetrieval",
    ),
    **_refused(
        "its choices differ in their text alone, so without the text all score alike and the image has no loss of its "
        "own. Use VisualBertForVisualReasoning or VisualBertForQuestionAnswering on the same checkpoint, or train it "
        "jointly by transformers.Trainer.",
        "VisualBertForMultipleChoice",
    ),
    **_refused(
        "its loss points from phrases to regions, and without the image there is none to point at. Use "
        "VisualBertForVisualReasoning or VisualBertForQuestionAnswering on the same checkpoint, or train it jointly "
        "by transformers.Trainer.",
        "VisualBertForRegionToPhraseAlignment",
    ),
    **_refused(
        "it raises on `labels`: training is not implemented upstream. Use ViltForQuestionAnswering with two answers "
        "(match or not) on the same checkpoint.",
        "ViltForImageAndTextRetrieval",
    ),
    **_refused(
        "its boxes enter the words, the patches and the attention's bias alike, so they belong to no single modality: "
        "the image alone would still see the text's layout. Use LayoutLMv3ForSequenceClassification, or "
        "CrossModalForSequenceClassification.from_encoders.",
        "UdopForConditionalGeneration",
    ),
    **_refused(_ONE_INPUT.format(modality="audio"), "WhisperForConditionalGeneration", "SpeechEncoderDecoderModel"),
    **_refused(_ONE_INPUT.format(modality="audio"), "SpeechT5ForSpeechToText", "Speech2TextForConditionalGeneration"),
    **_refused(_ONE_INPUT.format(modality="audio"), "MoonshineForConditionalGeneration"),
    **_refused(_ONE_INPUT.format(modality="image"), "VisionEncoderDecoderModel", "Pix2StructForConditionalGeneration"),
    **_refused(
        "it writes speech from text, one input modality and no label. Train it with transformers.Seq2SeqTrainer.",
        "SpeechT5ForTextToSpeech",
    ),
    **{
        base: Architecture(refused=_NO_LOSS.format(instead=instead))
        for base, instead in {
            "FlavaModel": "hf_dgl.models.FlavaForSequenceClassification",
            "BridgeTowerModel": "BridgeTowerForImageAndTextRetrieval",
            "LxmertModel": "LxmertForQuestionAnswering",
            "ViltModel": "ViltForQuestionAnswering",
            "VisualBertModel": "VisualBertForVisualReasoning",
            "LayoutLMv3Model": "LayoutLMv3ForSequenceClassification",
            "TvpModel": "TvpForVideoGrounding",
            "LlavaModel": "LlavaForConditionalGeneration",
            "SmolVLMModel": "SmolVLMForConditionalGeneration",
            "Idefics2Model": "Idefics2ForConditionalGeneration",
            "Idefics3Model": "Idefics3ForConditionalGeneration",
            "IdeficsModel": "IdeficsForVisionText2Text",
            "Gemma3Model": "Gemma3ForSequenceClassification",
            "PaliGemmaModel": "PaliGemmaForConditionalGeneration",
            "T5Gemma2Model": "T5Gemma2ForSequenceClassification",
            "ModernVBertModel": "ModernVBertForSequenceClassification",
            "UltraVBertModel": "UltraVBertForSequenceClassification",
            "MllamaModel": "MllamaForConditionalGeneration",
            "Florence2Model": "Florence2ForConditionalGeneration",
            "Ovis2Model": "Ovis2ForConditionalGeneration",
            "GitModel": "GitForCausalLM",
            "Qwen2AudioModel": "Qwen2AudioForConditionalGeneration",
            "CrossModalModel": "hf_dgl.models.CrossModalForSequenceClassification",
        }.items()
    },
}
