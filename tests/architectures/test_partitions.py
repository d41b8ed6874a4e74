"""What neither gradients nor leaks show of a row: parameters left to the fusion, and an absence that is not nothing.

A parameter that only one modality ever meets, and that the table counts as fusion all the same, has to be named here.
What stands in the place of an absent modality (zeros, the embedding of `<image>`) may be anything, with no difference.
"""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from torch import nn

from hf_dgl.architectures.lookup import ARCHITECTURES, modalities_of
from hf_dgl.method.dataflow.inputs import TARGET, group_inputs
from hf_dgl.method.dataflow.tags import observe
from hf_dgl.method.modalities import FUSION, resolve
from hf_dgl.method.outputs import map_tensors
from tests.architectures.test_matrix import build, cast, every_case, quietly_training, replace_output, zeros
from tests.architectures_tiny import TINY, VOCAB
from tests.devices import put

pytestmark = pytest.mark.device

# Fusion, although one modality only meets it: the way into the fusion, or the first part of a layer that mixes.
OF_THE_FUSION = {
    "CrossModalForSequenceClassification": r"\.(projections|fusion)\.",
    "FlavaForSequenceClassification": r"_to_mm_projection\.",
    "BridgeTowerFor(ImageAndTextRetrieval|MaskedLM)": r"\.cross_modal_",
    "T5Gemma2For(Sequence|Token)Classification": r"\.decoder\.layers\.0\.(self_attn\.q_|pre_self_attn)",
    "Blip2(ForConditionalGeneration|Model)": r"\.embed_positions\.",  # read off the text's mask
    "InstructBlip(Video)?ForConditionalGeneration": r"\.embed_positions\.|query_tokens|qformer\.(enc|.*\.layernorm)",
    "(MM)?GroundingDinoForObjectDetection": r"\.encoder\.layers\.0\.fusion_layer\.",
    "LayoutLMv3For.*": r"\.rel_pos",
    "BlipFor.*-embeddings": r"\.encoder\.layer\.",
    "BlipFor.*-by_name": r"\.crossattention\.",
    "Blip2ForImageTextMatching-embeddings": r"query_tokens|qformer\.(encoder|layernorm)",
    "Blip2ForImageTextMatching-by_name": r"query_tokens|qformer\.(encoder.*(attention|_query)|layernorm)",
    "MllamaForConditionalGeneration-embeddings": r"\.language_model\.layers\.",
    "MllamaForConditionalGeneration-by_name": r"\.language_model\.layers\.[12]\.",
    "IdeficsForVisionText2Text": r"\.gated_cross_attn_layers\.",
}
ZEROS_ARE_READ = ["BridgeTowerForMaskedLM", "GitForCausalLM"]  # so the fusion has to learn what they mean
PLACES = (60, 61)  # tokens in whose place features are put


def left_to_the_fusion(name, partition, modalities=None):
    """Parameters of the fusion that meet one modality only, and that nobody named."""
    model, table, batch = build(name, partition)
    return left_over(model, modalities or table, batch, f"{name}-{partition}")


def left_over(model, modalities, batch, name):
    """As [`left_to_the_fusion`], of a model at hand."""
    owners = resolve(model, modalities).owners
    group_of = {argument: group for group, found in group_inputs(batch).items() for argument in found}
    named = [why for row, why in OF_THE_FUSION.items() if re.fullmatch(f"{row}(-.*)?", name)]
    found = []
    for parameter, inputs in observe(model, batch).met.items():
        met = {group_of[argument] for argument in inputs if argument in group_of}
        alone = len(met) == 1 and not met & {TARGET, FUSION}
        if alone and not owners[parameter] and not any(re.search(why, parameter) for why in named):
            found.append(parameter)
    return found


@every_case
def test_no_parameter_is_left_to_the_fusion_by_oversight(name, partition):
    assert not left_to_the_fusion(name, partition)


def difference_of_what_is_absent(name, partition, modalities=None):
    """Modality -> how much its loss moves when noise stands in the place of the absent ones."""
    model, table, batch = build(name, partition, torch.float64)
    quietly_training(model)
    modalities = modalities or table
    resolved = resolve(model, modalities)

    def alone(name, noise):
        call, hooks = cast(dict(batch), torch.float64), []
        for other, modality in resolved.modalities.items():
            if other == name:
                continue
            call = modality.without(call)
            if modality.absent == "zero":
                empty = noise_like if noise else zeros
                hooks += [replace_output(module, empty) for module in resolved.encoders[other].values()]
            elif modality.absent != "omit":
                hooks += [replace_output(module, modality.absent) for module in resolved.encoders[other].values()]
            hooks += [replace_output(module, zeros) for module in resolved.silent[other]]
            if noise and other != "text":
                tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m.num_embeddings == VOCAB]
                hooks += [table.register_forward_hook(noise_at_the_places) for table in tables]
        try:
            torch.manual_seed(0)
            return model(**call)["loss"].item()
        finally:
            for hook in hooks:
                hook.remove()

    return {name: abs(alone(name, noise=True) - alone(name, noise=False)) for name in modalities}


def noise_like(output):
    torch.manual_seed(1)
    return map_tensors(lambda value: torch.randn_like(value) if value.is_floating_point() else value, output)


def noise_at_the_places(module, args, output):
    places = torch.isin(args[0], put(torch.tensor(PLACES)))
    return torch.where(places[..., None], output + 3.0, output)


@every_case
def test_what_stands_for_an_absent_modality_makes_no_difference(name, partition):
    differences = difference_of_what_is_absent(name, partition)
    if name in ZEROS_ARE_READ:
        assert ARCHITECTURES[name].method == "multimodal_truncation"
        assert max(differences.values()) > 1e-6, "no longer so: take it off the list"
    else:
        assert max(differences.values()) < 1e-9, differences


# ---- the checks can fail ----


@pytest.mark.parametrize(
    "name, modality, change",
    [
        ("LlavaNextForConditionalGeneration", "image", {"parameters": ()}),
        ("InstructBlipForConditionalGeneration", "text", {"encoder": ["language_model.model.decoder.embed_tokens"]}),
        ("ViltForQuestionAnswering", "image", {"parameters": ()}),
        ("VisualBertForVisualReasoning", "text", {"encoder": ["visual_bert.embeddings.word_embeddings"]}),
    ],
)
def test_a_forgotten_parameter_is_seen(name, modality, change):
    table = dict(modalities_of(TINY[name]()[0]))
    forgetful = {**table, modality: dataclasses.replace(table[modality], **change)}
    assert left_to_the_fusion(name, next(iter(ARCHITECTURES[name].partitions)), forgetful)


@pytest.mark.parametrize(
    "name, other, change",
    [
        ("BridgeTowerForImageAndTextRetrieval", "image", {"silent": ()}),
        ("LxmertForQuestionAnswering", "image", {"silent": ()}),
        ("BlipForImageTextMatching", "image", {"silent": ()}),
        ("InstructBlipForConditionalGeneration", "image", {"silent": ()}),
        ("LlavaForConditionalGeneration", "image", {"hide": None}),
        ("Gemma3ForSequenceClassification", "image", {"hide": None}),
        ("Blip2ForConditionalGeneration", "image", {"hide": None}),
        ("IdeficsForVisionText2Text", "image", {"hide": None}),
    ],
)
def test_an_absence_that_is_open_is_seen(name, other, change):
    table = dict(modalities_of(TINY[name]()[0]))
    opened = {**table, other: dataclasses.replace(table[other], **change)}
    assert difference_of_what_is_absent(name, next(iter(ARCHITECTURES[name].partitions)), opened)["text"] > 1e-6
