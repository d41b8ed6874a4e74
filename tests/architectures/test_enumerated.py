"""Every class of the installed Transformers that reads text beside something else and gives a loss has a place.

It is known (a row), refused (with a reason), or named here with what it wants. A new release of Transformers then
shows which classes came and went.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import transformers

from hf_dgl.architectures import ARCHITECTURES

_OTHER = (
    r"pixel_values\w*|image_pixel_values|image_patches|flattened_patches|image|images|visual_(feats|embeds)|"
    r"input_features|audio_input_features|input_values|audio_(input_ids|latents|codes)|user_audio_codes"
)
_LOSS = r"\b(labels|return_loss|\w+_labels|start_positions)\b|\bloss\s*="
_INHERITED_LOSS = "ForSequenceClassification"  # upstream's mixin takes the labels as keyword arguments

_SPEAKS = "it writes sound, and its loss is over audio codes or latents: text is what it speaks, not a second view"
OUTSIDE = {
    **dict.fromkeys(
        (
            *("ClvpModelForConditionalGeneration", "CsmForConditionalGeneration", "MoshiForConditionalGeneration"),
            *("GradiumPhononTTSForConditionalGeneration", "HiggsAudioV2ForConditionalGeneration"),
            *("MusicgenForConditionalGeneration", "MusicgenMelodyForConditionalGeneration"),
            *("PocketTTSForConditionalGeneration", "VibeVoiceForConditionalGeneration"),
        ),
        _SPEAKS,
    ),
    **dict.fromkeys(
        ("ColQwen2ForRetrieval", "PeAudioFrameLevelModel"),
        "it embeds, and its loss compares the modalities (or it has none)",
    ),
    **dict.fromkeys(("Sam3Model", "Sam3LiteTextModel"), "it computes no loss: its `labels` are of boxes it is shown"),
    **dict.fromkeys(
        ("SeamlessM4TModel", "SeamlessM4Tv2Model"), "it reads speech or text, never both: one is in place of the other"
    ),
    **dict.fromkeys(
        ("Pop2PianoForConditionalGeneration", "PPFormulaNetForConditionalGeneration"),
        "one input modality: `input_ids` are no text beside it",
    ),
    "VibeVoiceAsrForConditionalGeneration": "it runs its audio encoders under `torch.no_grad()`",
    "ShieldGemma2ForImageClassification": "its text is a fixed policy, so the picture is the only modality",
    "PI0ForConditionalGeneration": "it learns actions by a diffusion of its own; the robot's state is a third input",
    **dict.fromkeys(
        (
            *("LayoutLMv2ForQuestionAnswering", "LayoutLMv2ForSequenceClassification"),
            "LayoutLMv2ForTokenClassification",
        ),
        "it needs detectron2, which cannot be installed here, so nothing of it was proved",
    ),
}
"""Neither known nor refused: what they would want."""


@cache
def enumerated() -> frozenset[str]:
    """Public classes whose forward takes `input_ids` and pixels, video, features or waveforms, and computes a loss."""
    found = set()
    for file in (Path(transformers.__file__).parent / "models").glob("*/modeling_*.py"):
        for block in re.split(r"(?m)^(?=class )", file.read_text(encoding="utf-8"))[1:]:
            name = re.match(r"class (\w+)", block)[1]
            forward = re.search(r"(?ms)^    def forward\((.*?)^    \)[^\n]*:\n(.*?)(?=^    (?:def|@)|\Z)", block)
            if forward is None or not hasattr(transformers, name):
                continue
            arguments = re.findall(r"(?m)^        (\w+)", forward[1])
            other = [a for a in arguments if re.fullmatch(_OTHER, a)]
            loss = re.search(_LOSS, " ".join(arguments)) or re.search(_LOSS, _code(forward[2]))
            if "input_ids" in arguments and other and (loss or _INHERITED_LOSS in name):
                found.add(name)
    return frozenset(found)


def _code(body: str) -> str:
    return re.sub(r'(?s)r?""".*?"""', "", body)


def test_every_class_has_a_place() -> None:
    known = {name for name in ARCHITECTURES if hasattr(transformers, name)}
    new = sorted(enumerated() - known - set(OUTSIDE))
    assert not new, f"no row, no refusal, and not in OUTSIDE: {new}"
    gone = sorted(set(OUTSIDE) - enumerated())
    assert not gone, f"in OUTSIDE, and not (any more) in Transformers {transformers.__version__}: {gone}"


def test_what_is_outside_has_no_row() -> None:
    assert not set(OUTSIDE) & set(ARCHITECTURES)
