"""Every recipe that needs the Hub, trained for two steps: tiny checkpoints of the same classes, and made-up data with
the columns, types and splits that the recipe's comment reports. A recipe without stand-in fails."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import soundfile
import torch
import transformers as tf
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, Image, Value
from PIL import Image as PilImage

from hf_dgl.models.processing_cross_modal import default_processor
from hf_dgl.recipe.finetune import evaluate, finetune
from hf_dgl.recipe.recipe import load_recipe
from tests.native_checkpoints import FEATURES, REGIONS, WORDS, save_checkpoint, tiny_tokenizer, without_videos
from tests.tiers import slow_but
from tests.tiny import FAMILIES, tiny_encoder_config

RECIPES = sorted(
    path for path in Path("recipes").glob("*/*.yaml") if path.parent.name not in ("accelerate", "quickstart")
)
FAST = ["recipes/image_text/flava_hateful_memes.yaml", "recipes/audio_text/wav2vec2_meld.yaml"]  # one of each kind
RNG = np.random.default_rng(0)
ROWS = 24

# ---- stand-ins for checkpoints --------------------------------------------------------------------------------------

NATIVE = {  # Hub id -> its tiny likeness
    "BridgeTower/bridgetower-base-itm-mlm": "bridgetower",
    "facebook/flava-full": "flava",
    "ModernVBERT/modernvbert": "modernvbert",
    "unc-nlp/lxmert-base-uncased": "lxmert",
    "Salesforce/blip-vqa-base": "blip",
    "Qwen/Qwen2.5-VL-3B-Instruct": "qwen2_5_vl",
    "Qwen/Qwen2-Audio-7B-Instruct": "qwen2_audio",
    "Qwen/Qwen2.5-Omni-3B": "qwen2_5_omni",
    "google/gemma-3-4b-it": "gemma3",
}


def _encoder(family: str) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        config = tiny_encoder_config(family)
        if FAMILIES[family].modality == "text":
            processor: Any = tiny_tokenizer()
            config.vocab_size = len(processor)
        else:
            processor = default_processor(config)
        tf.AutoModel.from_config(config).save_pretrained(folder)
        processor.save_pretrained(folder)

    return save


def _dual(config_class: Any, text: str, other: str, part: str) -> Callable[[Path], None]:
    """A checkpoint with a tower for text and another one, as CLIP's and CLAP's are."""

    def save(folder: Path) -> None:
        tokenizer = tiny_tokenizer()
        configs = {name: tiny_encoder_config(family).to_dict() for name, family in ((part, other), ("text", text))}
        configs["text"]["vocab_size"] = len(tokenizer)
        config = config_class(**{f"{name}_config": values for name, values in configs.items()}, projection_dim=8)
        tf.AutoModel.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        default_processor(tiny_encoder_config(other)).save_pretrained(folder)

    return save


ENCODERS = {
    "openai/clip-vit-base-patch32": _dual(tf.CLIPConfig, "clip_text", "clip_vision", "vision"),
    "google/siglip-base-patch16-224": _dual(tf.SiglipConfig, "siglip_text", "siglip_vision", "vision"),
    "laion/clap-htsat-unfused": _dual(tf.ClapConfig, "clap_text", "clap_audio", "audio"),
    "google/vit-base-patch16-224": _encoder("vit"),
    "FacebookAI/roberta-base": _encoder("roberta"),
    "facebook/wav2vec2-base": _encoder("wav2vec2"),
    "facebook/hubert-base-ls960": _encoder("hubert"),
    "microsoft/wavlm-base": _encoder("wavlm"),
    "openai/whisper-small": _encoder("whisper"),
    "openai/whisper-tiny.en": _encoder("whisper"),
    "facebook/dinov2-small": _encoder("dinov2"),
    "sentence-transformers/all-MiniLM-L6-v2": _encoder("bert"),
}

# ---- stand-ins for data ---------------------------------------------------------------------------------------------


def _text(_: int) -> str:
    return " ".join(RNG.choice(WORDS, 4))


def _picture(_: int) -> PilImage.Image:
    return PilImage.fromarray(RNG.integers(0, 256, (20, 24, 3), dtype=np.uint8))


def _wav(rate: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, RNG.standard_normal(rate // 10), rate, format="WAV")
    return buffer.getvalue()


def _png() -> bytes:
    buffer = io.BytesIO()
    _picture(0).save(buffer, "PNG")
    return buffer.getvalue()


def _sound(rate: int) -> Callable[[int], dict[str, Any]]:
    return lambda _: {"bytes": _wav(rate), "path": "speech.wav"}


def _hub(columns: dict[str, tuple[Any, Callable[[int], Any]]], *splits: str) -> DatasetDict:
    """Column -> its type, and what gives its value in row i."""
    features = {name: kind for name, (kind, _) in columns.items()}
    stored = Features({name: kind for name, kind in features.items() if not isinstance(kind, (Audio, Image))})
    data = DatasetDict()
    for split in splits:
        values = {name: [make(i) for i in range(ROWS)] for name, (_, make) in columns.items()}
        part = Dataset.from_dict({name: values[name] for name in stored}, features=stored)
        for name in set(features) - set(stored):
            media = [value if isinstance(value, dict) else {"bytes": _png(), "path": None} for value in values[name]]
            part = part.add_column(name, media).cast_column(name, features[name])
        data[split] = part
    return data


STRING, NUMBER = Value("string"), Value("float32")
EMOTIONS = ["neutral", "joy", "sadness", "anger", "fear", "disgust", "surprise"]
INTENTS = ClassLabel(
    names="abroad address app_error atm_limit balance business_loan card_issues cash_deposit direct_debit freeze "
    "high_value_payment joint_account latest_transactions pay_bill".split()
)
ON_HUB: dict[tuple[str, str | None, str | None], Callable[[], DatasetDict]] = {  # name, configuration, revision
    ("biecho/hateful_memes", None, None): lambda: _hub(
        {
            "id": (STRING, str),
            "image": (Image(), _picture),
            "text": (STRING, _text),
            "label": (Value("int64"), lambda i: i % 2),
        },
        *("train", "dev_seen", "dev_unseen", "test_seen", "test_unseen"),
    ),
    ("flaviagiammarino/vqa-rad", None, None): lambda: _hub(
        {
            "image": (Image(), _picture),
            "question": (STRING, _text),
            "answer": (STRING, lambda i: ["yes", "no"][i % 2]),
        },
        *("train", "test"),
    ),
    ("yijingwu/HeySQuAD_human", None, None): lambda: _hub(
        {
            "id": (STRING, str),
            "audio": (Audio(), _sound(16000)),
            "transcription": (STRING, _text),
            "question": (STRING, _text),
            "context": (STRING, _text),
            "answers": (
                [{"answer_start": Value("int64"), "text": STRING}],
                lambda i: [{"answer_start": 0, "text": ["yes", "no"][i % 2]}],
            ),
            "is_impossible": (Value("bool"), lambda i: False),
        },
        *("train", "validation"),
    ),
    ("AbstractTTS/IEMOCAP", None, None): lambda: _hub(
        {
            "file": (STRING, str),
            "audio": (Audio(), _sound(16000)),
            "angry": (NUMBER, float),
            "transcription": (STRING, _text),
            "major_emotion": (STRING, lambda i: EMOTIONS[i % 3]),
        },
        "train",
    ),
    ("ajyy/MELD_audio", None, "refs/convert/parquet"): lambda: _hub(
        {
            "text": (STRING, _text),
            "path": (STRING, str),
            "audio": (Audio(sampling_rate=16000), _sound(16000)),
            "emotion": (ClassLabel(names=EMOTIONS), lambda i: i % 7),
            "sentiment": (ClassLabel(names=["neutral", "positive", "negative"]), lambda i: i % 3),
        },
        *("train", "validation", "test"),
    ),
    ("cairocode/cmu_mosei_wav", None, None): lambda: _hub(
        {
            "video": (STRING, str),
            "sentiment": (Value("float64"), lambda i: i / 4 - 3),
            "text": (STRING, _text),
            "audio": (Audio(), _sound(16000)),
            "label": (Value("int64"), lambda i: i % 3),
        },
        "train",
    ),
    ("PolyAI/minds14", "en-US", None): lambda: _hub(
        {
            "path": (STRING, str),
            "audio": (Audio(sampling_rate=8000), _sound(8000)),
            "transcription": (STRING, _text),
            "english_transcription": (STRING, _text),
            "intent_class": (INTENTS, lambda i: i % 14),
            "lang_id": (ClassLabel(names=["en-US"]), lambda i: 0),
        },
        "train",
    ),
}


def _file(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path.relative_to(path.parents[1]))


def _jsonl(folder: Path, row: Callable[[int], dict[str, Any]]) -> None:
    for split in ("train", "dev", "test"):
        lines = [json.dumps(row(i)) for i in range(ROWS)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _food101(folder: Path) -> None:
    _jsonl(
        folder,
        lambda i: {
            "id": f"pie_{i}",
            "label": ["apple_pie", "baklava"][i % 2],
            "text": _text(i),
            "img": _file(folder / "images" / f"{i}.png", _png()),
        },
    )


def _mmimdb(folder: Path) -> None:
    genres = [["Drama"], ["Drama", "Comedy"], ["Film-Noir", "Comedy"]]
    _jsonl(
        folder,
        lambda i: {
            "id": str(i),
            "text": _text(i),
            "image": _file(folder / "mmimdb" / f"{i}.jpeg", _png()),
            "label": genres[i % 3],
        },
    )


def _vqa_lxmert(folder: Path) -> None:
    for split in ("train", "validation", "test"):
        columns = {
            "question": [_text(i) for i in range(ROWS)],
            "visual_feats": RNG.random((ROWS, REGIONS, FEATURES)).tolist(),
            "visual_pos": RNG.random((ROWS, REGIONS, 4)).tolist(),
            "answer": [["yes", "no", "red"][i % 3] for i in range(ROWS)],
        }
        Dataset.from_dict(columns).to_parquet(folder / f"{split}.parquet")


def _mosei(folder: Path) -> None:
    for split in ("train", "validation", "test"):
        rows = [
            f"{_file(folder / 'frames' / f'{i}.png', _png())},{_file(folder / 'sounds' / f'{i}.wav', _wav(16000))},"
            f"{_text(i) if i % 3 else ''},{i / 4 - 3}"
            for i in range(ROWS)
        ]
        (folder / f"{split}.csv").write_text("\n".join(["image,audio,text,sentiment", *rows]), encoding="utf-8")


def _mosei_words(folder: Path) -> None:
    for split in ("train", "validation", "test"):
        rows = [
            f"{_file(folder / 'frames' / f'{i}.png', _png())},{_file(folder / 'sounds' / f'{i}.wav', _wav(16000))},"
            f"{_text(i)},{['positive', 'neutral', 'negative'][i % 3]}"
            for i in range(ROWS)
        ]
        (folder / f"{split}.csv").write_text("\n".join(["image,audio,text,answer", *rows]), encoding="utf-8")


def _table(**columns: Callable[[Path, int], str]) -> Callable[[Path], None]:
    """Tables whose columns hold what is given for each row."""

    def save(folder: Path) -> None:
        for split in ("train", "validation", "test"):
            rows = [",".join(make(folder, i) for make in columns.values()) for i in range(ROWS)]
            (folder / f"{split}.csv").write_text("\n".join([",".join(columns), *rows]), encoding="utf-8")

    return save


def _photo(folder: Path, i: int) -> str:
    return _file(folder / "photos" / f"{i}.png", _png())


def _speech(folder: Path, i: int) -> str:
    return _file(folder / "speech" / f"{i}.wav", _wav(16000))


def _sentence(_: Path, i: int) -> str:
    return _text(i)


def _kind(_: Path, i: int) -> str:
    return ["animals", "food", "town"][i % 3]


_QUESTIONS = _table(photo=_photo, question=_sentence, answer=_kind)

FOLDERS = {
    "data/stamps": _table(
        photo=_photo, speech=_speech, hidden_words=_sentence, wrong_sentence=_sentence, category=_kind
    ),
    "data/stamps/nature": _QUESTIONS,
    "data/stamps/question": _QUESTIONS,
    "data/emoji": _table(photo=_photo, misspelt=_sentence, category=_kind),
    "data/mosei_words": _mosei_words,
    "data/food101": _food101,
    "data/mmimdb": _mmimdb,
    "data/vqa_lxmert": _vqa_lxmert,
    "data/mosei": _mosei,
}

# ---- the test -------------------------------------------------------------------------------------------------------


def _stand_in(table: dict[str, Any], name: str, kind: str) -> Any:
    if name not in table:
        pytest.fail(f"No stand-in for the {kind} {name!r}: add a row to {kind.upper()} in this file.")
    return table[name]


@pytest.fixture
def _hub_of_stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    original = datasets.load_dataset
    made: dict[Any, DatasetDict] = {}

    def load_dataset(path: str, *args: Any, revision: str | None = None, token: Any = None, **kwargs: Any) -> Any:
        if Path(path).exists() or kwargs.get("data_files"):
            return original(path, *args, **kwargs)
        key = (path, args[0] if args else None, revision)
        assert key in ON_HUB, f"No stand-in for the data set {key}: add a row to ON_HUB in this file."
        if key not in made:  # the same rows, however often they are asked for
            made[key] = ON_HUB[key]()
        return made[key]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    without_videos(monkeypatch)


@pytest.mark.usefixtures("_hub_of_stand_ins")
@pytest.mark.parametrize(
    "path",
    slow_but(*map(Path, FAST), of=RECIPES),
    ids=lambda path: str(path.relative_to("recipes")),
)
def test_recipe_trains_for_two_steps(path: Path, tmp_path: Path) -> None:
    """As it stands, but for the checkpoints, the place of the data, and the number of steps."""
    torch.manual_seed(0)
    words = ["--max_steps=2", "--max_train_samples=16", "--max_eval_samples=8", "--disable_tqdm=true", "--use_cpu"]
    words += ["--eval_strategy=steps", "--save_strategy=steps", "--eval_steps=2", "--save_steps=2"]
    words += ["--per_device_train_batch_size=4", "--dataloader_num_workers=0", f"--output_dir={tmp_path / 'out'}"]
    recipe = load_recipe(path, words)
    if recipe.model.model_name_or_path is not None:
        name = _stand_in(NATIVE, recipe.model.model_name_or_path, "native")
        recipe.model.model_name_or_path = save_checkpoint(name, tmp_path / "checkpoint")
    encoders: Any = recipe.model.encoders or {}
    for modality, checkpoint in encoders.items():
        folder = tmp_path / modality
        _stand_in(ENCODERS, checkpoint, "encoders")(folder)
        encoders[modality] = str(folder)
    if str(recipe.data.dataset_name).startswith("data/"):
        folder = tmp_path / "data"
        folder.mkdir()
        _stand_in(FOLDERS, str(recipe.data.dataset_name), "folders")(folder)
        recipe.data.dataset_name = str(folder)
    result = finetune(recipe)
    metric = recipe.training.metric_for_best_model
    for stage in ("before", "validation", "test"):
        assert math.isfinite(result.metrics[stage][str(metric)]), (stage, result.metrics[stage])
    modalities = list(result.trainer.disentangled.partition.modalities)  # type: ignore[union-attr]
    assert [row[0] for row in result.table().rows] == ["fused", *(f"{name} alone" for name in modalities)]
    scored = evaluate(str(tmp_path / "out"), recipe)
    exact = 1e-4 if recipe.model.peft is None else 1e-3  # merged adapters, in bfloat16
    assert {key: scored[key] for key in result.metrics["test"]} == pytest.approx(result.metrics["test"], abs=exact)
    if result.model.can_generate():  # the answers that it writes, fused and from each modality alone
        names = [
            f"{metric}{alone}" for metric in ("exact_match", "vqa_accuracy", "wer") for alone in _suffixes(modalities)
        ]
        assert set(scored) - set(result.metrics["test"]) == set(names)
    else:
        assert scored.keys() == result.metrics["test"].keys()


def _suffixes(modalities: list[str]) -> list[str]:
    return ["", *(f"_{name}" for name in modalities)]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to("recipes")))
def test_recipe_says_what_it_wants(path: Path) -> None:
    comment = path.read_text(encoding="utf-8").split("\n\n", 1)[0]
    for words in ("Data: ", f"hf-dgl train {path}", "Hardware: ", "(estimated)", "Expected result: "):
        assert words in comment, words
