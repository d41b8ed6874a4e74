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
from hf_dgl.method.modalities import resolve
from tests.architectures_tiny import TINY
from tests.shrunk import SHRUNK

BUILDERS = {**TINY, **SHRUNK}

CONTRASTIVE = "contrastive loss"
ONE_INPUT = "one input modality"
REFUSED = {
    **dict.fromkeys(["CLIPModel", "SiglipModel", "ClapModel", "BridgeTowerForContrastiveLearning"], CONTRASTIVE),
    **dict.fromkeys(["WhisperForConditionalGeneration", "SpeechEncoderDecoderModel"], ONE_INPUT),
    **dict.fromkeys(["VisionEncoderDecoderModel", "SpeechT5ForSpeechToText"], ONE_INPUT),
    "UdopForConditionalGeneration": "boxes enter the words, the patches and the attention's bias",
    "VisualBertForMultipleChoice": "choices differ in their text alone",
}
"""Rightly refused: class -> why."""

FINER = {
    "CrossModalForSequenceClassification": "projections",
    "InstructBlipForConditionalGeneration": "qformer",
}
"""What sees one modality only, and the table counts as fusion all the same: a legal choice, too."""

SAMPLE = {
    *("BridgeTowerForImageAndTextRetrieval", "LxmertForQuestionAnswering", "CrossModalForSequenceClassification"),
    *("BlipForConditionalGeneration", "Blip2ForConditionalGeneration", "LlavaNextForConditionalGeneration"),
    *("Qwen2_5_VLForConditionalGeneration", "VisualBertForMultipleChoice", "UdopForConditionalGeneration"),
}
"""Of the fast tier."""

SECONDS = 5.0


def tiered(names):
    return [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", tiered(name for name in BUILDERS if name not in REFUSED))
def test_exact_and_as_the_table_or_coarser(name: str) -> None:
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
        assert said <= of_table[parameter] or re.search(FINER.get(name, "nothing is"), parameter), (parameter, said)


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
