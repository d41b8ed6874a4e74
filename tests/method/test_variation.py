"""Only contents vary: what says where something is stays in its place."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, LlavaConfig

from hf_dgl.method.variation import same, special_tokens, varied


@pytest.mark.parametrize(
    "name",
    [
        *(
            "attention_mask",
            "pixel_attention_mask",
            "image_embeds_position_mask",
            "input_features_mask",
            "position_ids",
        ),
        *(
            "token_type_ids",
            "mm_token_type_ids",
            "visual_token_type_ids",
            "image_grid_thw",
            "image_grids",
            "image_sizes",
        ),
        *("spatial_shapes", "aspect_ratio_ids", "batch_num_images", "num_local_patches", "num_frames_per_video"),
        *("audio_feature_lengths", "audio_embed_sizes", "second_per_grid_ts", "image_token_pooling", "target_sizes"),
        *("image_text_alignment", "image_merge_sizes", "image_num_crops", "height", "width", "bool_masked_pos"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.long, torch.float32])
def test_structure_stays(name, dtype):
    batch = {name: torch.arange(1, 13).view(3, 4).to(dtype) / 8}
    assert same(varied(batch, [name]), batch)


@pytest.mark.parametrize(
    "name",
    [
        *("pixel_values", "pixel_values_videos", "input_features", "input_values", "visual_feats", "visual_embeds"),
        *("flattened_patches", "image_patches", "high_res_pixel_values", "audio_input_features", "image_embeds"),
    ],
)
def test_contents_vary(name):
    batch = {name: torch.randn(3, 4, 5)}
    changed = varied(batch, [name])[name]
    assert not bool((changed == batch[name]).any())
    assert same(varied(batch, ["other"]), batch)


def test_padding_and_the_numbers_of_patches_stay():
    patches = torch.randn(2, 6, 5)
    patches[..., 0], patches[..., 1] = torch.arange(6) // 3, torch.arange(6) % 3  # row and column
    patches[1, 4:] = 0
    changed = varied({"flattened_patches": patches}, ["flattened_patches"])["flattened_patches"]
    assert torch.equal(changed[..., :2], patches[..., :2])
    assert not bool(changed[1, 4:].any())
    assert not bool((changed[0, :, 2:] == patches[0, :, 2:]).any())


def test_pictures_of_whole_numbers_vary_too():
    batch = {"pixel_values": torch.ones(2, 3, 4, 4)}
    assert not same(varied(batch, ["pixel_values"]), batch)


def test_words_become_others_and_special_tokens_stay():
    ids = torch.tensor([[1, 60, 60, 7, 8, 2], [1, 60, 60, 9, 10, 0]])
    changed = varied({"input_ids": ids}, ["input_ids"], {0, 1, 2, 60})["input_ids"]
    words = torch.isin(ids, torch.tensor([7, 8, 9, 10]))
    assert torch.equal(changed[~words], ids[~words])
    assert not bool((changed[words] == ids[words]).any())
    assert set(changed[words].tolist()) == {7, 8, 9, 10}


def test_words_of_every_row_stay():
    ids = torch.tensor([[101, 7, 12, 8, 12, 102], [101, 9, 12, 7, 12, 102]])
    changed = varied({"input_ids": ids}, ["input_ids"])["input_ids"]
    signs = torch.isin(ids, torch.tensor([101, 102, 12, 7]))
    assert torch.equal(changed[signs], ids[signs])
    assert changed[~signs].tolist() == [9, 8]


def test_inputs_of_a_nested_modality():
    text = {"input_ids": torch.tensor([[7, 8]]), "attention_mask": torch.ones(1, 2), "present": torch.tensor([True])}
    changed = varied({"text": text}, ["text"])["text"]
    assert changed["input_ids"].tolist() == [[8, 7]]
    assert changed["attention_mask"] is text["attention_mask"] and changed["present"] is text["present"]


def test_what_cannot_be_other_is_the_same():
    batch = {"input_ids": torch.full((2, 3), 7)}
    assert same(varied(batch, ["input_ids"]), batch)


def test_special_tokens_of_a_model_and_its_parts():
    class Wrapper(nn.Module):  # as a user's, with nothing at the top
        def __init__(self):
            super().__init__()
            self.inner = nn.Identity()
            self.inner.config = LlavaConfig(
                image_token_index=60, text_config={"model_type": "llama", "eos_token_id": [2, 3]}
            )
            self.other = nn.Identity()
            self.other.config = BertConfig(pad_token_id=5)

    found = special_tokens(Wrapper())
    assert {2, 3, 5, 60} <= found


def test_places_are_found_in_sub_configs():
    """Phi-4 keeps the ids of its images' and sounds' places below `vision_config` and `audio_config`."""
    from transformers import Phi4MultimodalConfig

    module = nn.Identity()
    module.config = Phi4MultimodalConfig(vision_config={"image_token_id": 61}, audio_config={"audio_token_id": 62})
    assert {61, 62} <= special_tokens(module)
