"""`auto` on a tiny model of every class that Transformers has with words, another modality and a loss.

What it finds is proved by its own checks, and compared with the table of architectures, which others wrote. A class
that a new release of Transformers adds belongs to none of the lists below: the enumeration then says so.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import time
from pathlib import Path

import pytest

from hf_dgl.architectures import ARCHITECTURES, modalities_of
from hf_dgl.architectures.attach import found_by_data_flow
from hf_dgl.method.dataflow import propose
from hf_dgl.method.modalities import resolve
from tests.architectures_tiny import TINY
from tests.shrunk import SHRUNK

from .further import FURTHER

BUILDERS = {**FURTHER, **TINY, **SHRUNK}

CONTRASTIVE = "contrastive loss"
ONE_INPUT = "one input modality"
REFUSED = {
    **dict.fromkeys(["CLIPModel", "SiglipModel", "ClapModel", "BridgeTowerForContrastiveLearning"], CONTRASTIVE),
    **dict.fromkeys(["WhisperForConditionalGeneration", "SpeechEncoderDecoderModel"], ONE_INPUT),
    **dict.fromkeys(["VisionEncoderDecoderModel", "SpeechT5ForSpeechToText"], ONE_INPUT),
    "ChameleonForConditionalGeneration": "No module of the model sees 'text' alone",  # nor the image's codes
    "UdopForConditionalGeneration": "boxes enter the words, the patches and the attention's bias",
    "VisualBertForMultipleChoice": "choices differ in their text alone",
}
"""Rightly refused: class -> why."""

FINER = {
    "CrossModalForSequenceClassification": "projections",
    "InstructBlipForConditionalGeneration": "qformer",
}
"""What sees one modality only, and the table counts as fusion all the same: a legal choice, too."""

COARSER = {
    **dict.fromkeys(["ViltForQuestionAnswering", "ViltForImagesAndTextClassification"], "cls_token|position_emb"),
    **dict.fromkeys(["VisualBertForVisualReasoning", "VisualBertForQuestionAnswering"], "(position|type)_embeddings"),
    "LayoutLMv3ForSequenceClassification": r"\.(cls_token|pos_embed|norm\.)",
    "Ovis2ForConditionalGeneration": "visual_embeddings_table",
    "VideoLlavaForConditionalGeneration": "multi_modal_projector",  # of images and videos, which have a tower each
}
"""What the table gives to a modality, and data flow leaves to the fusion, which is never wrong."""

SAMPLE = {
    *("BridgeTowerForImageAndTextRetrieval", "LxmertForQuestionAnswering", "CrossModalForSequenceClassification"),
    *("BlipForConditionalGeneration", "Blip2ForConditionalGeneration", "LlavaNextForConditionalGeneration"),
    *("Kosmos2_5ForConditionalGeneration", "ViltForMaskedLM", "LayoutLMv3ForTokenClassification"),
    *("Qwen2_5_VLForConditionalGeneration", "VisualBertForMultipleChoice", "UdopForConditionalGeneration"),
}
"""Of the fast tier."""

SECONDS = 5.0


def tiered(names):
    return [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", tiered(name for name in BUILDERS if name not in REFUSED))
def test_exact_and_as_the_table(name: str) -> None:
    model, batch = BUILDERS[name]()
    started = time.process_time()
    modalities = found_by_data_flow(model, batch)  # exact and without a leak, or it raises
    assert time.process_time() - started < SECONDS
    if name not in ARCHITECTURES:
        return
    table = modalities_of(model)
    of_table, found = resolve(model, table).owners, resolve(model, modalities).owners
    for parameter, owners in found.items():
        said = {_in_words_of(table, owner) for owner in owners}
        if said != of_table[parameter]:
            listed = COARSER if said < of_table[parameter] else FINER
            assert re.search(listed.get(name, "nothing is"), parameter), (parameter, said, of_table[parameter])


@pytest.mark.parametrize(
    ("name", "parameter", "owners"),
    [
        ("Kosmos2_5ForConditionalGeneration", "text_model.model.segment_emb.weight", set()),  # of the whole sequence
        ("Blip2ForConditionalGeneration", "language_model.model.decoder.embed_positions.weight", set()),
        ("PaliGemmaForConditionalGeneration", "lm_head.weight", {"text"}),  # tied to the token embeddings
        ("LlavaNextForConditionalGeneration", "model.image_newline", {"image"}),
        ("MusicFlamingoForConditionalGeneration", "model.multi_modal_projector.linear_1.weight", {"audio"}),
    ],
)
def test_where_it_belongs(name: str, parameter: str, owners: set[str]) -> None:
    model, batch = BUILDERS[name]()
    assert resolve(model, propose(model, batch).modalities).owners[parameter] == owners


def _in_words_of(table: object, owner: str) -> str:
    """The table's word for what it sees, where that is not the one that is read off the inputs' names."""
    if owner in table:  # type: ignore[operator]
        return owner
    return next(word for word in ("video", "image") if word in table)  # type: ignore[operator]


@pytest.mark.parametrize("name", tiered(REFUSED))
def test_rightly_refused(name: str) -> None:
    model, batch = BUILDERS[name]()
    with pytest.raises(ValueError, match=REFUSED[name]):
        found_by_data_flow(model, batch)


# ---- the enumeration ----

_OTHER = re.compile(r"pixel_values|image|video|visual|patches|audio|input_features|input_values")
_NO_CONTENT = re.compile(
    r"mask|position|size|grid|_ids$|token|num_|use_|feature_layer|select|aspect|second|length|merge|labels|alignment"
    r"|(image|text|audio|vision)_embeds$|outputs$|states$|return|type|attention|per_sample|crops|embeddings$|cutoffs"
)


def classes_by_signature() -> set[str]:
    """Classes of Transformers whose own forward takes words, another modality's content, and something to predict."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.origin is not None
    found = set()
    for file in Path(spec.origin).parent.glob("models/*/modeling_*.py"):
        source = file.read_text(encoding="utf-8")
        if "input_ids" not in source or not _OTHER.search(source):
            continue
        tree = ast.parse(source)
        public = re.search(r"^__all__ = \[(.*?)\]", source, re.DOTALL | re.MULTILINE)
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and public and f'"{node.name}"' in public[1]:
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and method.name == "forward" and _fits(method.args):
                        found.add(node.name)
    return found


def _fits(arguments: ast.arguments) -> bool:
    names = [argument.arg for argument in [*arguments.args[1:], *arguments.kwonlyargs]]
    other = any(_OTHER.search(name) and not _NO_CONTENT.search(name) for name in names)
    predicted = any(name.endswith("labels") or name in ("return_loss", "start_positions") for name in names)
    return "input_ids" in names and other and predicted


_WRITES_SOUND = "sound is what it writes"
_SPEECH_OR_TEXT = "it reads speech or text, never both"
_CODES = "the image's codes and the words have one table of embeddings"
_NO_TINY_MODEL = "no tiny model here yet"
NOT_TRIED = {
    **dict.fromkeys(["CsmForConditionalGeneration", "MoshiForConditionalGeneration"], _WRITES_SOUND),
    **dict.fromkeys(["GradiumPhononTTSForConditionalGeneration", "PocketTTSForConditionalGeneration"], _WRITES_SOUND),
    **dict.fromkeys(["MusicgenForConditionalGeneration", "MusicgenMelodyForConditionalGeneration"], _WRITES_SOUND),
    **dict.fromkeys(["VibeVoiceForConditionalGeneration"], _WRITES_SOUND),
    **dict.fromkeys(["SeamlessM4TModel", "SeamlessM4Tv2Model"], _SPEECH_OR_TEXT),
    **dict.fromkeys(["Pop2PianoForConditionalGeneration", "PPFormulaNetForConditionalGeneration"], ONE_INPUT),
    **dict.fromkeys(["Emu3ForConditionalGeneration", "GlmImageForConditionalGeneration"], _CODES),
    **dict.fromkeys(["ClvpModelForConditionalGeneration", "PeAudioFrameLevelModel"], CONTRASTIVE),
    **dict.fromkeys(["Sam3Model", "Sam3LiteTextModel"], "its labels are those of the boxes that prompt it"),
    **dict.fromkeys(
        [
            *("ColQwen2ForRetrieval", "DeepseekOcr2ForConditionalGeneration", "Dots3NoteForConditionalGeneration"),
            *("Gemma3nForConditionalGeneration", "Granite4VisionForConditionalGeneration", "Ovis2Model"),
            *("GraniteDoclingForConditionalGeneration", "InklingForConditionalGeneration", "NeoMMEForMaskedLM"),
            *("InstructBlipVideoForConditionalGeneration", "LayoutLMv2ForQuestionAnswering"),
            *("LayoutLMv2ForSequenceClassification", "LayoutLMv2ForTokenClassification"),
            *("MistralLarge4ForConditionalGeneration", "Molmo2ForConditionalGeneration"),
            *("MuseSparkForConditionalGeneration", "NemotronH_Omni_Reasoning_V3"),
            *("ShieldGemma2ForImageClassification", "Step3p7ForConditionalGeneration"),
            *("UnlimitedOcrForConditionalGeneration", "VibeVoiceAsrForConditionalGeneration"),
            "VisualBertForRegionToPhraseAlignment",
        ],
        _NO_TINY_MODEL,
    ),
}
"""Class -> why `auto` is not tried on it here."""


@pytest.mark.slow
def test_every_class_of_transformers_is_accounted_for() -> None:
    """A new release with another class fails here: give it a tiny model, or say why it is refused."""
    known = set(BUILDERS) | {name for name, row in ARCHITECTURES.items() if row.refused} | set(NOT_TRIED)
    found = classes_by_signature()
    assert found <= known, sorted(found - known)
    assert set(NOT_TRIED) <= found, sorted(set(NOT_TRIED) - found)
