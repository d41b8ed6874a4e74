"""Several data sets as one: shares, labels by name, and no row in two splits."""

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict

from hf_dgl.data.labels import LabelSpec
from hf_dgl.data.media import load_image
from hf_dgl.data.mixing import mix_splits
from hf_dgl.data.sources import load_data


def csv(path, label, num_rows, word):
    labels = [label[i % len(label)] for i in range(num_rows)]
    Dataset.from_dict({"text": [f"{word} {i}" for i in range(num_rows)], "label": labels}).to_csv(path)
    return str(path)


@pytest.fixture
def pair(tmp_path):
    return {
        csv(tmp_path / "a.csv", ["cat", "dog"], 400, "a"): 0.7,
        csv(tmp_path / "b.csv", ["dog", "owl"], 200, "b"): 0.3,
    }


@pytest.mark.parametrize("streaming", [False, True])
def test_shares_labels_and_splits(pair, streaming):
    data = load_data(pair, streaming=streaming)
    rows = {split: list(part) for split, part in data.items()}
    of_a = sum(row["row"].startswith(next(iter(pair))) for row in rows["train"])
    assert of_a / len(rows["train"]) == pytest.approx(0.7, abs=0.06)
    texts = {split: [row["text"] for row in part] for split, part in rows.items()}
    assert not set(texts["train"]) & (set(texts["validation"]) | set(texts["test"]))
    assert set().union(*map(set, texts.values())) == {f"a {i}" for i in range(400)} | {f"b {i}" for i in range(200)}
    for split in ("validation", "test"):
        assert len(texts[split]) == len(set(texts[split])), "no row is scored twice"
    names = ["cat", "dog", "owl"]
    spec = LabelSpec.from_dataset(data["train"], class_names=names if streaming else None)
    assert spec.names == ("cat", "dog", "owl")
    for row in spec.encode(data)["test"]:
        source, number = row["text"].split()
        pool = ["cat", "dog"] if source == "a" else ["dog", "owl"]
        assert names[row["label"]] == pool[int(number) % 2]


def test_seeded(pair):
    first, again, other = (load_data(pair, seed=seed)["train"]["row"][:] for seed in (0, 0, 1))
    assert first == again != other


def test_class_ids_that_differ_are_unified_by_name():
    def part(names):
        table = Dataset.from_dict({"text": [name + "!" for name in names] * 20, "label": list(range(len(names))) * 20})
        return DatasetDict(
            train=table.cast_column("label", ClassLabel(names=names)).add_column("row", ["x"] * len(table))
        )

    for convert in (lambda table: table, lambda table: table.to_iterable_dataset()):
        parts = {
            name: {"train": convert(part(names)["train"])}
            for name, names in {"a": ["cat", "dog"], "b": ["owl", "cat"]}.items()
        }
        train = mix_splits(parts, {"a": 1.0, "b": 1.0}, seed=0)["train"]
        assert train.features["label"].names == ["cat", "dog", "owl"]
        assert all(train.features["label"].int2str(row["label"]) + "!" == row["text"] for row in train)
        assert {row["row"] for row in train} == {"a: x", "b: x"}


def test_multi_label(tmp_path):
    for name, labels in {"a": [["x"], ["x", "y"]], "b": [["z"], ["y", "z"]]}.items():
        Dataset.from_dict({"text": [name] * 40, "label": labels * 20}).to_parquet(tmp_path / f"{name}.parquet")
    data = load_data({str(tmp_path / "a.parquet"): 1, str(tmp_path / "b.parquet"): 1})
    assert LabelSpec.from_dataset(data["train"]).names == ("x", "y", "z")


def test_images_by_path_and_embedded(media_folder, tmp_path):
    by_path = Dataset.from_list([{"image": f"images/{i % 6}.png", "label": "ab"[i % 2]} for i in range(40)])
    by_path.to_csv(media_folder / "a.csv")
    files = [{"bytes": (media_folder / f"images/{i % 6}.png").read_bytes(), "path": None} for i in range(40)]
    embedded = Dataset.from_dict({"image": files, "label": ["a", "b"] * 20}).cast_column("image", datasets.Image())
    embedded.to_parquet(tmp_path / "b.parquet")
    data = load_data({str(media_folder / "a.csv"): 0.5, str(tmp_path / "b.parquet"): 0.5}, modalities=["image"])
    assert {load_image(row["image"]).size for row in data["train"]} == {(10, 12)}


@pytest.mark.parametrize("weight", [0, -1, "many", float("nan")])
def test_weights_that_are_none(pair, weight):
    with pytest.raises(ValueError, match="expected a weight above 0 for '.*b.csv'"):
        load_data({**pair, list(pair)[1]: weight})


def test_labels_of_different_kinds(tmp_path):
    parts = {csv(tmp_path / "a.csv", ["cat", "dog"], 40, "a"): 1, csv(tmp_path / "b.csv", [0, 1], 40, "b"): 1}
    with pytest.raises(
        ValueError,
        match="cannot be mixed: .* for 'label' hold different things: texts in .*, texts that are numbers in",
    ):
        load_data(parts)
