"""Checkpoints of an image and an audio encoder that read small pictures and short recordings: for a CPU.

    python recipes/real/encoders.py data/encoders
    hf-dgl train recipes/real/stamps.yaml --encoders image=data/encoders/image audio=data/encoders/audio

Written are OUT/image and OUT/audio. The weights are those of the Hub, or of a folder (`--image FOLDER`). What changes
is the size of the pictures, which can be any multiple of the patch size, and how long recordings are: Whisper pads all
of them to 30 s. Of its positions, which are sines and not learned, the first are kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import AutoImageProcessor, AutoModel, WhisperFeatureExtractor, WhisperModel

POSITIONS_PER_SECOND = 50


def save_image_encoder(source: str, pixels: int, out: Path) -> None:
    """The checkpoint as it is, with a processor that makes square pictures of so many pixels."""
    AutoModel.from_pretrained(source).save_pretrained(out)
    processor = AutoImageProcessor.from_pretrained(source)
    processor.size, processor.crop_size = {"shortest_edge": pixels}, {"height": pixels, "width": pixels}
    processor.save_pretrained(out)


def save_audio_encoder(source: str, seconds: int, out: Path) -> None:
    """A Whisper whose encoder has positions for so many seconds."""
    model = WhisperModel.from_pretrained(source)
    positions = seconds * POSITIONS_PER_SECOND
    if positions > model.config.max_source_positions:
        longest = model.config.max_source_positions // POSITIONS_PER_SECOND
        raise SystemExit(f"--seconds: {source} reads at most {longest}, got {seconds}.")
    table = model.encoder.embed_positions
    table.weight = type(table.weight)(table.weight[:positions].detach().clone(), requires_grad=False)
    table.num_embeddings = model.config.max_source_positions = positions
    model.save_pretrained(out)
    mels = model.config.num_mel_bins
    WhisperFeatureExtractor(feature_size=mels, chunk_length=seconds).save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--image", default="facebook/dinov2-small", help="Hub id or folder (default: %(default)s)")
    parser.add_argument("--pixels", type=int, default=70, help="default: %(default)s, 5 x 5 patches of DINOv2")
    parser.add_argument("--audio", default="openai/whisper-tiny.en", help="Hub id or folder (default: %(default)s)")
    parser.add_argument("--seconds", type=int, default=2, help="default: %(default)s")
    arguments = parser.parse_args()
    save_image_encoder(arguments.image, arguments.pixels, arguments.out / "image")
    save_audio_encoder(arguments.audio, arguments.seconds, arguments.out / "audio")
    print(f"--encoders image={arguments.out / 'image'} audio={arguments.out / 'audio'}")


if __name__ == "__main__":
    main()
