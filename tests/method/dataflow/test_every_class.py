"""`auto` on a tiny model of every class that Transformers has with words, another modality and a loss.

What it finds is proved by its own checks, and compared with the table of architectures, which others wrote. A class
that a new release of Transformers adds belongs to none of the lists below: the enumeration then says so.
"""

from __future__ import annotations

import re
import time

import pytest

from hf_dgl.architectures import ARCHITECTURES, modalities_of
from hf_dgl.architectures.attach import found_by_data_flow
from hf_dgl.method.dataflow import propose
from hf_dgl.method.modalities import resolve
from tests.architectures.test_enumerated import OUTSIDE, enumerated
from tests.architectures_tiny import TINY
from tests.shrunk import SHRUNK

from .further import FURTHER

BUILDERS = {**FURTHER, **TINY, **{name: build for name, build in SHRUNK.items() if name in ARCHITECTURES}}

CONTRASTIVE = "contrastive loss"
ONE_INPUT = "one input modality"
REFUSED = {
    **dict.fromkeys(["CLIPModel", "SiglipModel", "ClapModel", "BridgeTowerForContrastiveLearning"], CONTRASTIVE),
    **dict.fromkeys(["WhisperForConditionalGeneration", "SpeechEncoderDecoderModel"], ONE_INPUT),
    **dict.fromkeys(["VisionEncoderDecoderModel", "SpeechT5ForSpeechToText"], ONE_INPUT),
    "ChameleonForConditionalGeneration": "its pictures become codes by an argmin",
    "UdopForConditionalGeneration": "boxes enter the words, the patches and the attention's bias",
    "Gemma3nForConditionalGeneration": "WRONG .relative error nan",  # zeros: it has a square root of their norm
    "MuseSparkForConditionalGeneration": "No module of the model sees 'text' alone",  # sounds pass its table's norm
    "VisualBertForMultipleChoice": "choices differ in their text alone",
}
"""Rightly refused: class -> why."""

FINER = {
    "CrossModalForSequenceClassification": "projections",
    **dict.fromkeys(["InstructBlipForConditionalGeneration", "InstructBlipVideoForConditionalGeneration"], "qformer"),
}
"""What sees one modality only, and the table counts as fusion all the same: a legal choice, too."""

COARSER = {
    **dict.fromkeys(["ViltForQuestionAnswering", "ViltForImagesAndTextClassification"], "cls_token|position_emb"),
    **dict.fromkeys(["ViltForMaskedLM", "ViltForTokenClassification"], "cls_token|position_emb"),
    **dict.fromkeys(["VisualBertForVisualReasoning", "VisualBertForQuestionAnswering"], "(position|type)_embeddings"),
    "VisualBertForPreTraining": "(position|type)_embeddings",
    **dict.fromkeys(
        [f"LayoutLMv3For{task}" for task in ("SequenceClassification", "TokenClassification", "QuestionAnswering")],
        r"\.(cls_token|pos_embed|norm\.)",
    ),
    **dict.fromkeys(["GroundingDinoForObjectDetection", "MMGroundingDinoForObjectDetection"], "text_projection"),
    "Phi4MultimodalForCausalLM": "_proj_for_speech",  # of sounds without pictures beside them
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
    with pytest.raises(ValueError, match=REFUSED[name]) as raised:
        found_by_data_flow(model, batch)
    has_row = name in ARCHITECTURES and not ARCHITECTURES[name].refused
    assert ("leave `modalities` out" in str(raised.value)) == has_row


@pytest.mark.slow
def test_every_class_of_transformers_is_accounted_for() -> None:
    """A new release with another class fails here: give it a tiny model, or say why it is refused."""
    refused = {name for name, row in ARCHITECTURES.items() if row.refused}
    untried = enumerated() - set(BUILDERS) - refused - set(OUTSIDE)
    assert not untried, sorted(untried)
