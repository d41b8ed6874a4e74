"""Shared by the data tests: a cache of their own, and small processors."""

import datasets
import numpy as np
import pytest
import soundfile
from PIL import Image
from transformers import ViTImageProcessorPil, Wav2Vec2FeatureExtractor

from hf_dgl.models import CrossModalProcessor
from hf_dgl.models.processing_cross_modal import train_tokenizer


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def processor():
    return CrossModalProcessor(
        {
            "image": ViTImageProcessorPil(size={"height": 16, "width": 16}),
            "text": train_tokenizer(["an even digit", "an odd digit"]),
            "audio": Wav2Vec2FeatureExtractor(sampling_rate=16_000),
        }
    )


@pytest.fixture
def media_folder(tmp_path):
    """`images/0.png`..., `sounds/0.wav`... (8 kHz, half a second), six of each."""
    rng = np.random.default_rng(0)
    for folder in ("images", "sounds"):
        (tmp_path / folder).mkdir()
    for index in range(6):
        pixels = rng.integers(0, 255, size=(12, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
        soundfile.write(tmp_path / "sounds" / f"{index}.wav", rng.uniform(-0.5, 0.5, size=4000), 8000)
    return tmp_path
