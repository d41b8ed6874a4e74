"""The tiny recipe that the tests of the toolkit train: two steps take about a second."""

from __future__ import annotations

from typing import Any

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
TINY_ENCODERS: dict[str, Any] = {
    "image": {"model_type": "vit", "image_size": 16, "patch_size": 8, **TINY},
    "text": {"model_type": "bert", "vocab_size": 200, "max_position_embeddings": 34, **TINY},
    "audio": {
        "model_type": "audio-spectrogram-transformer",
        "num_mel_bins": 16,
        "max_length": 16,
        "patch_size": 8,
        "frequency_stride": 8,
        "time_stride": 8,
        **TINY,
    },
}


def tiny_recipe(output_dir: Any, *modalities: str, **values: Any) -> dict[str, Any]:
    """Values of a recipe file: two steps on the sample data of these modalities (image and text by default)."""
    modalities = modalities or ("image", "text")
    return {
        "encoders": {name: TINY_ENCODERS[name] for name in modalities},
        "num_fusion_layers": 1,
        "dataset_name": f"sample:{'_'.join(modalities)}",
        "max_train_samples": 40,
        "max_eval_samples": 20,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "learning_rate": 1e-3,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": True,
        "output_dir": str(output_dir),
        **values,
    }
