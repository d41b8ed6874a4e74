import json

import datasets
import numpy as np
import pytest
import soundfile
from datasets import Dataset, DatasetDict
from PIL import Image

from hf_dgl.data.collator import CrossModalCollator
from hf_dgl.data.labels import LabelSpec
from hf_dgl.data.media import load_image
from hf_dgl.data.sources import load_data

ROWS = [
    {"photo": f"images/{i}.png", "sound": f"sounds/{i}.wav", "title": f"thing {i}", "kind": "ab"[i % 2]}
    for i in range(6)
]
MAPPING = {"image": "photo", "audio": "sound", "text": "title", "label": "kind"}


def write_table(folder, suffix):
    """Each row five times, so that there is enough to split."""
    table = Dataset.from_list(ROWS * 5)
    path = folder / f"data{suffix}"
    if suffix in (".csv", ".tsv"):
        table.to_csv(path, sep="\t" if suffix == ".tsv" else ",")
    elif suffix == ".parquet":
        table.to_parquet(path)
    else:
        path.write_text("\n".join(map(json.dumps, ROWS * 5)) if suffix == ".jsonl" else json.dumps(ROWS * 5))
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".parquet"])
def test_tables_with_paths_relative_to_the_file(media_folder, processor, suffix):
    data = load_data(write_table(media_folder, suffix), column_mapping=MAPPING, modalities=["image", "audio", "text"])
    assert {split: len(part) for split, part in data.items()} == {"train": 21, "validation": 3, "test": 6}
    assert set(data["train"].column_names) == {"image", "audio", "text", "label", "row"}
    spec = LabelSpec.from_dataset(data["train"])
    assert spec.names == ("a", "b")
    rows = list(spec.encode(data)["test"])
    batch = CrossModalCollator(processor, spec)(rows)
    assert batch["audio"]["input_values"].shape == (6, 8000), "half a second, resampled to 16 kHz"
    source_row = int(rows[0]["row"].removeprefix("train[").removesuffix("]"))
    assert rows[0]["text"] == f"thing {source_row % 6}"


def test_broken_file_in_a_table_is_named_with_its_row(media_folder, processor):
    (media_folder / "images" / "4.png").write_text("broken")
    data = load_data(write_table(media_folder, ".csv"), column_mapping=MAPPING, test_split=None)
    broken = next(row for row in data["train"] if row["image"].endswith("4.png"))
    with pytest.raises(ValueError, match=r"Row train\[\d+\], 'image': Cannot read the image file '.*/images/4.png'"):
        CrossModalCollator(processor)([broken])


def test_null_paths_stay_null(media_folder):
    Dataset.from_list([{**row, "photo": row["photo"] if i else None} for i, row in enumerate(ROWS * 5)]).to_csv(
        media_folder / "data.csv"
    )
    data = load_data(str(media_folder / "data.csv"), column_mapping=MAPPING)
    images = [image for part in data.values() for image in part["image"]]
    assert images.count(None) == 1


def test_columns_of_other_names_with_paths_are_found_by_their_files(media_folder):
    mapping = {"front": "photo", "caption": "title", "label": "kind"}
    data = load_data(write_table(media_folder, ".csv"), column_mapping=mapping)
    assert load_image(data["train"][0]["front"]).size == (10, 12)
    assert data["train"][0]["caption"].startswith("thing")


def test_image_folder(media_folder):
    for index in range(20):
        folder = media_folder / "pets" / ("cat" if index % 2 else "dog")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4, 3), index, dtype=np.uint8)).save(folder / f"{index}.png")
    data = load_data(str(media_folder / "pets"), modalities=["image"])
    assert data["train"].features["label"].names == ["cat", "dog"]
    assert data["train"].features["image"] == datasets.Value("string"), "nothing is decoded or embedded"
    assert load_image(data["train"][0]["image"]).size == (4, 4)


@pytest.mark.parametrize(
    "train, test",
    [
        ("Train", "Test"),
        ("training_set/training_set", "test_set/test_set"),
        ("seg_train", "seg_test"),
        ("TRAIN", "eval"),
    ],
)
def test_class_folders_by_split_however_they_are_called(tmp_path, train, test):
    """Unknown names were passed over, and rows to test on trained on."""
    for part, count in ((train, 10), (test, 4)):
        for index in range(count):
            folder = tmp_path / part / ("cat" if index % 2 else "dog")
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4)).save(folder / f"{index}.png")
    data = load_data(str(tmp_path), modalities=["image"])
    assert len(data["test"]) == 4 and data["test"].features["label"].names == ["cat", "dog"]


def test_classes_whose_names_speak_of_splits(tmp_path):
    for index in range(20):
        folder = tmp_path / ("train_station" if index % 2 else "airport")
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / f"{index}.png")
    data = load_data(str(tmp_path), modalities=["image"], test_split=None)
    assert data["train"].features["label"].names == ["airport", "train_station"]


def test_folders_in_class_folders_are_no_classes(tmp_path):
    for name in ("cat/front", "cat/back", "dog/front"):
        (tmp_path / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name / "0.png")
    with pytest.raises(ValueError, match="cat/back/0.png': is its class 'cat' or 'back'?"):
        load_data(str(tmp_path), modalities=["image"])
    names = [f"{name}/0.png" for name in ("cat/front", "cat/back", "dog/front")]
    Dataset.from_dict({"file_name": names, "kind": ["a", "b", "b"]}).to_csv(tmp_path / "metadata.csv")
    with pytest.raises(ValueError, match="has no column 'label'"):
        load_data(str(tmp_path), modalities=["image"])


@pytest.mark.parametrize("has_splits", [False, True])
def test_audio_folder_of_class_folders(media_folder, processor, has_splits):
    for split in ("train", "val") if has_splits else ("",):
        for index in range(12):
            folder = media_folder / "words" / split / ("yes" if index % 2 else "no")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{index}.wav").write_bytes((media_folder / "sounds" / f"{index % 6}.wav").read_bytes())
    data = load_data(str(media_folder / "words"), modalities=["audio"], test_split=None)
    assert len(data["validation"]) == (12 if has_splits else 1)
    spec = LabelSpec.from_dataset(data["train"])
    assert spec.names == ("no", "yes")
    assert "audio" in CrossModalCollator(processor, spec)(list(data["train"]))


def test_audio_folder_with_metadata(media_folder):
    table = [{"file_name": f"{i}.wav", "text": f"word {i}", "label": i % 2} for i in range(6)]
    Dataset.from_list(table).to_csv(media_folder / "sounds" / "metadata.csv")
    data = load_data(str(media_folder / "sounds"), modalities=["audio", "text"], test_split=None)
    assert data["train"][0]["audio"] == str((media_folder / "sounds" / "0.wav").resolve())
    Dataset.from_list([{"path": "0.wav"}]).to_csv(media_folder / "sounds" / "metadata.csv")
    with pytest.raises(ValueError, match=r"needs a column 'file_name'.*\['path'\]"):
        load_data(str(media_folder / "sounds"))


def test_audio_files_outside_class_folders(media_folder):
    with pytest.raises(ValueError, match="0.wav' lies in no class folder.*metadata.csv"):
        load_data(str(media_folder / "sounds"))


def test_saved_data_sets_and_data_in_memory(tmp_path):
    table = Dataset.from_dict({"text": ["a", "b"] * 20, "label": [0, 1] * 20})
    table.save_to_disk(tmp_path / "one")
    DatasetDict(train=table, test=table).save_to_disk(tmp_path / "several")
    from_disk = load_data(str(tmp_path / "one"))
    assert from_disk["train"]["text"][:] == load_data(table)["train"]["text"][:]
    assert len(load_data(str(tmp_path / "several"))["test"]) == 40
    assert load_data(DatasetDict(train=table, test=table)).keys() == {"train", "validation", "test"}


def test_samples_and_limits():
    data = load_data("sample:image_text", max_train_samples=50, max_eval_samples=20, modalities=["text"])
    assert {split: len(part) for split, part in data.items()} == {"train": 50, "validation": 20, "test": 20}
    assert set(data["train"].column_names) == {"text", "label", "row"}
    again = load_data("sample:image_text", max_train_samples=50, max_eval_samples=20, modalities=["text"])
    assert data["train"]["row"][:] == again["train"]["row"][:]


def test_encoded_audio_is_not_decoded():
    """`datasets` would ask for torchcodec as soon as a row with a decoding Audio column is read."""
    wav = {"bytes": b"RIFF", "path": None}
    table = Dataset.from_dict({"audio": [wav] * 20, "label": [0, 1] * 10}).cast_column("audio", datasets.Audio())
    assert load_data(table)["train"][0]["audio"] == wav


def test_swapped_columns():
    table = Dataset.from_dict({"text": ["x"] * 20, "label": ["L"] * 20, "y": [0, 1] * 10})
    data = load_data(table, column_mapping={"text": "label", "label": "y"})
    assert data["train"][0]["text"] == "L"
    assert data["train"][0]["label"] in (0, 1)


def test_missing_column_names_the_nearest(media_folder):
    path = write_table(media_folder, ".csv")
    with pytest.raises(ValueError, match=r"no column 'foto' for 'image': did you mean 'photo'\?.*'title', 'kind'\]"):
        load_data(path, column_mapping={**MAPPING, "image": "foto"})
    with pytest.raises(ValueError, match=r"no column 'label' for 'label'.*column_mapping=\{'label': '<column>'\}"):
        load_data(path, column_mapping={"text": "title"})
    with pytest.raises(ValueError, match=r"column_mapping: 'imag' is neither a modality.*did you mean 'image'"):
        load_data(path, column_mapping={"imag": "photo", "label": "kind"}, modalities=["image"])
    with pytest.raises(ValueError, match=r"the column 'kind' is used for \['text', 'label'\]"):
        load_data(path, column_mapping={"text": "kind", "label": "kind"})


def test_missing_file_names_the_nearest(media_folder):
    write_table(media_folder, ".csv")
    with pytest.raises(ValueError, match=r"no file or folder '.*dat.csv'.*did you mean 'data.csv'"):
        load_data(str(media_folder / "dat.csv"))
    with pytest.raises(ValueError, match="no file or folder 'gone.csv'"):
        load_data("gone.csv")


def test_unknown_kinds_of_source(tmp_path):
    (tmp_path / "notes.docx").touch()
    with pytest.raises(ValueError, match=r"Cannot read '.*notes.docx': expected one of .csv.*got '.docx'"):
        load_data(str(tmp_path / "notes.docx"))
    with pytest.raises(ValueError, match="'csv' is a format, not a data set"):
        load_data("csv")
    with pytest.raises(ValueError, match="Unknown sample 'images_text'"):
        load_data("sample:images_text")
    with pytest.raises(
        ValueError, match="expected a Hub id, a path, sample:NAME, a Dataset or a DatasetDict, got list"
    ):
        load_data([{"text": "a"}])


def test_empty_and_damaged_files(tmp_path):
    (tmp_path / "empty.csv").touch()
    with pytest.raises(ValueError, match=r"Cannot read '.*empty.csv'"):
        load_data(str(tmp_path / "empty.csv"))
    (tmp_path / "header.csv").write_text("text,label\n")
    with pytest.raises(ValueError, match=r"header.csv'"):
        load_data(str(tmp_path / "header.csv"))
    (tmp_path / "bad.jsonl").write_text('{"text": "a"\nnonsense')
    with pytest.raises(ValueError, match=r"Cannot read '.*bad.jsonl'"):
        load_data(str(tmp_path / "bad.jsonl"))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match=r"Cannot read '.*nothing'"):
        load_data(str(tmp_path / "nothing"))


def test_empty_split_is_named():
    table = Dataset.from_dict({"text": ["a", "b"], "label": [0, 1]})
    with pytest.raises(ValueError, match="split 'test' of 'DatasetDict': the data set has no rows"):
        load_data(DatasetDict(train=table, test=table.select([])))


def test_unreachable_hub_says_what_was_tried(monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'user/name' on the Hub (ConnectError)")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ValueError, match="Cannot load the data set 'user/name': Couldn't reach.*sample:image_text"):
        load_data("user/name")


def test_hub_arguments_are_passed_on(monkeypatch):
    seen = {}

    def load_dataset(*args, **kwargs):
        seen.update(args=args, **kwargs)
        return DatasetDict(train=Dataset.from_dict({"text": ["a"] * 20, "label": [0, 1] * 10}))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    load_data("user/name", "small", revision="v2", token="secret")
    assert seen == {"args": ("user/name", "small"), "revision": "v2", "token": "secret"}


# ---------------------------------------------------------------------------------- folders as people have them


def competition(folder, names=("train", "val", "test"), media="media", labelled=True, suffix=".png"):
    """Tables by split, and the media in a folder beside them."""
    (folder / media).mkdir(parents=True)
    for name in names:
        lines = ["photo,title,kind" if labelled or name != "test" else "photo,title"]
        for index in range(12):
            file = folder / media / f"{name}_{index}{suffix}"
            if suffix == ".png":
                Image.new("RGB", (4, 4), (index, 0, 0)).save(file)
            else:
                soundfile.write(file, np.zeros(800), 8000)
            line = f"{media}/{file.name},thing {index},{'ab'[index % 2]}"
            lines.append(line if labelled or name != "test" else line.rpartition(",")[0])
        (folder / f"{name}.csv").write_text("\n".join(lines))
    return str(folder)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("media", ["media", "img", "train_images", "test"])
@pytest.mark.parametrize("names", [("train", "test"), ("train", "val", "test"), ("train",)])
@pytest.mark.parametrize("suffix", [".png", ".wav"])
def test_tables_by_split_with_their_media_beside_them(tmp_path, names, media, suffix, streaming):
    name = {".png": "image", ".wav": "audio"}[suffix]
    mapping = {name: "photo", "text": "title", "label": "kind"}
    data = load_data(competition(tmp_path / "x", names, media, suffix=suffix), None, mapping, streaming=streaming)
    rows = [row for split in data.values() for row in split]
    assert set(data) == {"train", "validation", "test"} and len(rows) == 12 * len(names)
    for row in rows:
        assert row[name].startswith(str(tmp_path)) and row[name].endswith(suffix) and row["label"] in ("a", "b")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_test_table_without_labels(tmp_path, streaming):
    mapping = {"image": "photo", "text": "title", "label": "kind"}
    folder = competition(tmp_path / "x", labelled=False)
    with pytest.raises(ValueError, match="'test' of .* has no column 'kind', .*--test_split null.*hf-dgl predict"):
        load_data(folder, None, mapping, streaming=streaming)
    data = load_data(folder, None, mapping, test_split=None, streaming=streaming)
    assert len(list(data["validation"])) == 12
    test = tmp_path / "x" / "test.csv"
    test.write_text("\n".join(f"{line},{'' if n else 'kind'}" for n, line in enumerate(test.read_text().split("\n"))))
    with pytest.raises(ValueError, match="'test' of .* has no label in any row .*--test_split null"):
        load_data(folder, None, mapping, streaming=streaming)


def test_one_table_of_any_name_beside_media(tmp_path):
    folder = competition(tmp_path / "x", ("rows",))
    data = load_data(folder, None, {"image": "photo", "label": "kind"}, test_split=None)
    assert sum(map(len, data.values())) == 12
    (tmp_path / "x" / "sample_submission.csv").write_text("id,kind\n1,a\n")
    with pytest.raises(ValueError, match=r"several tables with different columns \(rows.csv: .*--data"):
        load_data(folder, None, {"image": "photo", "label": "kind"})


def test_class_folders_beside_a_table_that_leads_nowhere_are_class_folders(tmp_path):
    for index in range(20):
        file = tmp_path / "ab"[index % 2] / f"{index}.png"
        file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(file)
    (tmp_path / "notes.csv").write_text("who,when\nme,now\n")
    assert load_data(str(tmp_path), modalities=["image"])["train"].features["label"].names == ["a", "b"]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind, suffix", [("image", ".png"), ("audio", ".wav")])
def test_class_folders_with_captions_in_metadata(tmp_path, kind, suffix, streaming):
    competition(tmp_path / "cat", ("x",), ".", suffix=suffix)
    competition(tmp_path / "dog", ("y",), ".", suffix=suffix)
    for table in tmp_path.rglob("*.csv"):
        table.unlink()
    files = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob(f"*{suffix}"))
    lines = [f"{file},NA" for file in files]  # a caption that pandas takes for nothing
    (tmp_path / "metadata.csv").write_text("\n".join(["file_name,text", *lines]))
    data = load_data(str(tmp_path), modalities=[kind, "text"], streaming=streaming)
    rows = [row for split in data.values() for row in split]
    assert len(rows) == 24 and {row["text"] for row in rows} == {"NA"}
    names = data["train"].features["label"].names
    assert all(f"/{names[row['label']]}/" in row[kind] for row in rows)


@pytest.mark.parametrize("streaming", [False, True])
def test_nested_fields_by_dotted_paths(media_folder, streaming):
    rows = [{"media": {"image": f"images/{i % 6}.png"}, "about": {"text": {"de": "x"}}, "y": i % 2} for i in range(40)]
    path = media_folder / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    mapping = {"image": "media.image", "text": "about.text.de", "label": "y"}
    data = load_data(str(path), column_mapping=mapping, streaming=streaming)
    row = next(iter(data["train"]))
    assert row["image"].endswith(".png") and row["image"].startswith("/") and row["text"] == "x"
    if not streaming:
        with pytest.raises(ValueError, match="no column 'media.imag' for 'image': did you mean 'media.image'"):
            load_data(str(path), column_mapping={"image": "media.imag", "label": "y"})
        with pytest.raises(ValueError, match="no column 'image' for 'image': did you mean 'media.image'"):
            load_data(str(path), column_mapping={"label": "y"}, modalities=["image"])


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_an_extra_column_in_one_split(tmp_path, suffix):
    for split in ("train", "test"):
        rows = [{"text": f"{i}", "label": "ab"[i % 2]} | ({"more": 1} if split == "test" else {}) for i in range(20)]
        table, path = Dataset.from_list(rows), tmp_path / f"{split}{suffix}"
        {".csv": table.to_csv, ".jsonl": table.to_json, ".parquet": table.to_parquet}[suffix](path)
    assert load_data(str(tmp_path), modalities=["text"])["test"].column_names == ["text", "label", "row"]


@pytest.mark.parametrize("streaming", [False, True])
def test_several_targets(tmp_path, streaming):
    (tmp_path / "x.csv").write_text("text,a,b\n" + "".join(f"{i},{i}.5,{100 * i}\n" for i in range(40)))
    data = load_data(str(tmp_path / "x.csv"), None, {"label": ["a", "b"]}, ["text"], streaming=streaming)
    spec = LabelSpec.from_dataset(data["train"], class_names=["a", "b"])
    assert (spec.problem_type, spec.num_labels, spec.names) == ("regression", 2, ("a", "b"))
    row = next(iter(spec.encode(data)["train"]))
    assert row["label"] == [float(row["text"]) + 0.5, 100 * float(row["text"])]
    with pytest.raises(ValueError, match=r"no column 'c' \(of \['a', 'c'\]\)"):
        load_data(str(tmp_path / "x.csv"), None, {"label": ["a", "c"]}, ["text"])


def test_tables_in_folders_by_split(tmp_path):
    for split in ("train", "test"):
        (tmp_path / "x" / split).mkdir(parents=True)
        (tmp_path / "x" / split / "rows.csv").write_text("text,label\n" + "None,NA\nnull,b\n" * 20)
    assert set(load_data(str(tmp_path / "x"))["test"]["label"]) == {"NA", "b"}
    (tmp_path / "y" / "deep").mkdir(parents=True)
    (tmp_path / "y" / "deep" / "rows.csv").write_text("text,label\nNone,NA\n")
    with pytest.raises(ValueError, match=r"tables in sub-folders, e.g. 'deep/rows.csv'.*--data .*deep/rows.csv"):
        load_data(str(tmp_path / "y"))
