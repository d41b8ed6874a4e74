import re
from decimal import Decimal
from types import SimpleNamespace

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_dgl.data import encode_labels, load_data, prepare_splits
from hf_dgl.data.labels import LabelSpec, expect_dataset
from hf_dgl.data.report import inspect_data

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def dataset_of(values, feature=None):
    return Dataset.from_dict({"label": values}, features=Features({"label": feature}) if feature else None)


@pytest.mark.parametrize(
    ("values", "feature", "problem_type", "names", "encoded"),
    [
        (["dog", "cat", "dog"], None, SINGLE, ("cat", "dog"), [1, 0, 1]),
        ([1, 0], ClassLabel(names=["zebra", "ape"]), SINGLE, ("zebra", "ape"), [1, 0]),
        ([10, 9, 10], None, SINGLE, ("9", "10"), [1, 0, 1]),
        ([True, False], None, SINGLE, ("False", "True"), [1, 0]),
        ([[1, 0, 0], [0, 1, 1]], None, MULTI, ("0", "1", "2"), [[1, 0, 0], [0, 1, 1]]),
        ([["b", "a"], [], ["a"]], None, MULTI, ("a", "b"), [[1, 1], [0, 0], [1, 0]]),
        ([[1], [0, 1]], List(ClassLabel(names=["x", "y"])), MULTI, ("x", "y"), [[0, 1], [1, 1]]),
        ([0.5, 2.0], None, "regression", ("label",), [0.5, 2.0]),
    ],
)
def test_the_meaning_of_each_kind_of_column(values, feature, problem_type, names, encoded):
    dataset = dataset_of(values, feature)
    spec = LabelSpec.from_dataset(dataset)
    assert (spec.problem_type, spec.names) == (problem_type, names)
    assert spec.num_labels == len(names)
    assert spec.label2id == {name: index for index, name in spec.id2label.items()}
    once = spec.encode(dataset)
    assert once["label"][:] == encoded
    assert spec.encode(once)["label"][:] == encoded, "encoding twice changes nothing"


def test_problem_type_overrides_the_guess():
    assert LabelSpec.from_dataset(dataset_of([1, 2, 3]), problem_type="regression").num_labels == 1
    floats = dataset_of([1.0, 3.0])  # integers of a csv with gaps
    assert LabelSpec.from_dataset(floats, problem_type=SINGLE).encode(floats)["label"][:] == [0, 1]


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.text(min_size=1, max_size=3).map(str.strip).filter(bool), min_size=2, max_size=20).filter(
        lambda v: len(set(v)) > 1
    )
)
def test_encoded_strings_decode_to_themselves(values):
    spec = LabelSpec.from_dataset(dataset_of(values), problem_type=SINGLE)
    assert [spec.id2label[spec.encode_value(value)] for value in values] == values


def test_other_order_of_class_names_is_mapped_by_name():
    spec = LabelSpec(SINGLE, ("cat", "dog"))
    other = dataset_of([0, 1], ClassLabel(names=["dog", "cat"]))
    assert spec.encode(other)["label"][:] == [1, 0]


def test_integers_are_class_ids_where_classes_have_real_names():
    config = SimpleNamespace(id2label={1: "dog", 0: "cat"}, problem_type=None)
    spec = LabelSpec.from_config(config)
    assert spec == LabelSpec(SINGLE, ("cat", "dog"))
    assert spec.encode(dataset_of([1, 0, 1]))["label"][:] == [1, 0, 1]


def test_all_splits_at_once_and_other_columns_stay():
    part = Dataset.from_dict({"text": ["a", "b"], "label": ["x", "y"]})
    data = LabelSpec.from_dataset(part).encode(DatasetDict(train=part, test=part))
    assert data["test"].features["label"] == ClassLabel(names=["x", "y"])
    assert data["test"]["text"][:] == ["a", "b"]


def test_label_unseen_in_training_is_named_with_row_and_split():
    spec = LabelSpec.from_dataset(dataset_of(["sunny", "rainy"]))
    with pytest.raises(ValueError, match=r"Row 1 of split 'test'.*'suny' does not occur in the training.*'sunny'"):
        spec.encode(DatasetDict(test=dataset_of(["rainy", "suny"])))
    with pytest.raises(ValueError, match=r"Row train\[17\] \(split 'validation'\)"):
        spec.encode(dataset_of(["fog"]).add_column("row", ["train[17]"]), "validation")
    with pytest.raises(ValueError, match="'c' does not occur"):
        LabelSpec(MULTI, ("a", "b")).encode(dataset_of([["a"], ["c"]]))


def test_class_id_out_of_range_and_hidden_labels():
    with pytest.raises(ValueError, match=r"label 3 is none of the class ids 0...1"):
        LabelSpec(SINGLE, ("cat", "dog")).encode(dataset_of([0, 3]))
    with pytest.raises(ValueError, match="'hidden' in many public test splits.*test_split=null"):
        LabelSpec(SINGLE, ("cat", "dog")).encode(dataset_of([-1, -1], ClassLabel(names=["cat", "dog"])), "test")


@pytest.mark.parametrize("values", [["a", None, "b"], [0, None, 1], [0.5, None, 1.0], [["a"], None, ["b"]]])
def test_null_label_names_the_row(values):
    with pytest.raises(ValueError, match="Row 1 of split 'train' has no label.*null"):
        LabelSpec.from_dataset(dataset_of(values))


def test_the_other_rows_without_a_label_are_counted():
    with pytest.raises(ValueError, match="null\\), nor have 2 other rows. Label"):
        LabelSpec.from_dataset(dataset_of(["a", None, None, None]))
    with pytest.raises(ValueError, match="null\\). Label such rows, or leave them out: --on_error skip"):
        LabelSpec.from_dataset(dataset_of(["a", None]))


def test_nan_is_no_label():
    with pytest.raises(ValueError, match="Row 1 of split 'train' has no label"):
        LabelSpec.from_dataset(dataset_of([0.5, float("nan")]))


def test_single_class_is_refused():
    with pytest.raises(ValueError, match="All labels of the training split are 'a'; at least 2 classes"):
        LabelSpec.from_dataset(dataset_of(["a", "a"]))


@pytest.mark.parametrize(
    ("values", "problem_type", "message"),
    [
        (["a", "b"], "regression", "problem_type='regression' does not fit"),
        ([[0, 1], [1, 0]], SINGLE, "does not fit the label column 'label'"),
        ([1, 2], MULTI, "does not fit"),
        ([1, 2], "regresion", "Unknown problem_type 'regresion': did you mean 'regression'"),
        ([[3, 1], [2]], None, "must be multi-hot"),
        ([0.5, 1.5], SINGLE, "not a whole number"),
    ],
)
def test_labels_that_do_not_fit(values, problem_type, message):
    with pytest.raises(ValueError, match=message):
        LabelSpec.from_dataset(dataset_of(values), problem_type=problem_type)


def test_missing_label_column_lists_the_columns():
    with pytest.raises(ValueError, match=r"no label column 'label'.*\['y'\].*column_mapping"):
        LabelSpec.from_dataset(Dataset.from_dict({"y": [1]}))


def test_expect_dataset_guesses_what_was_meant():
    part = Dataset.from_dict({"x": [1]})
    assert expect_dataset(part, "train_dataset") is part
    with pytest.raises(
        ValueError, match=r"got a DatasetDict with the splits \['train'\].*train_dataset=data\['train'\]"
    ):
        expect_dataset(DatasetDict(train=part), "train_dataset")
    with pytest.raises(ValueError, match="expected a datasets.Dataset, got list.*Dataset.from_list"):
        expect_dataset([{"x": 1}], "train_dataset")
    with pytest.raises(ValueError, match="no rows"):
        expect_dataset(part.select([]), "train_dataset")
    with pytest.raises(ValueError, match="got a IterableDatasetDict"):
        expect_dataset(datasets.IterableDatasetDict(train=part.to_iterable_dataset()), "train_dataset")


def test_multi_label_value_must_be_a_list():
    with pytest.raises(ValueError, match="expected a list of labels, got 'a'"):
        LabelSpec(MULTI, ("a", "b")).encode_value("a")


def test_regression_value_must_be_a_finite_number():
    spec = LabelSpec("regression", ("label",))
    with pytest.raises(ValueError, match="expected a number"):
        spec.encode_value("much")
    with pytest.raises(ValueError, match="expected a finite number"):
        spec.encode_value(float("inf"))
    assert spec.encode(dataset_of([1, 2])).features["label"] == Value("float32")


@pytest.mark.parametrize(
    ("labels", "class_names", "names", "encoded"),
    [
        ([0, 1, 1], ["cat", "dog"], ("cat", "dog"), [0, 1, 1]),
        (["dog", "cat", "dog"], ["dog", "cat", "owl"], ("dog", "cat", "owl"), [0, 1, 0]),
        ([7, 3, 7], ["7", "3"], ("7", "3"), [0, 1, 0]),
        ([0.0, 1.0, 1.0], ["cat", "dog"], ("cat", "dog"), [0, 1, 1]),
    ],
)
def test_class_names_that_are_given(labels, class_names, names, encoded):
    data = Dataset.from_dict({"label": labels})
    spec = LabelSpec.from_dataset(data, class_names=class_names)
    assert (spec.names, spec.problem_type) == (names, "single_label_classification")
    assert spec.encode(data)["label"][:] == encoded


def test_class_names_that_cannot_be():
    data = Dataset.from_dict({"label": ["cat", "dog"]})
    with pytest.raises(ValueError, match="class_names: expected every name once"):
        LabelSpec.from_dataset(data, class_names=["cat", "cat"])
    with pytest.raises(ValueError, match="Row 1 of split 'train'.*'dog' does not occur"):
        LabelSpec.from_dataset(data, class_names=["cat", "cow"]).encode(data)
    declared = data.cast_column("label", ClassLabel(names=["cat", "dog"]))
    with pytest.raises(ValueError, match=r"class_names: the label column's classes \['dog'\] are missing"):
        LabelSpec.from_dataset(declared, class_names=["cat", "cow"])


@pytest.mark.parametrize("digits, problem_type", [("50", "regression"), ("", "single_label_classification")])
def test_decimals_are_numbers(digits, problem_type):
    values = [Decimal(f"{i}.{digits}") if digits else Decimal(i) for i in (1, 2, 3)]
    spec = LabelSpec.from_dataset(Dataset.from_dict({"label": values}))
    assert spec.problem_type == problem_type
    assert spec.encode_value(values[0]) == (1.5 if digits else 1)


def test_what_is_no_number_among_measurements_is_no_class():
    """Prices and an "N/A" were as many classes as prices."""
    data = Dataset.from_dict({"label": [f"{i}.5" for i in range(20)] + ["N/A"]})
    with pytest.raises(ValueError, match="Row 20 of split 'train'.*'N/A' is no number.*e.g. '0.5'.*--on_error skip"):
        LabelSpec.from_dataset(data)
    several = Dataset.from_dict({"label": [[f"{i}.5", "1"] for i in range(20)] + [["NA", "1"]]})
    with pytest.raises(ValueError, match="Row 20 of split 'train'.*no number.*--on_error skip"):
        LabelSpec.from_dataset(several)
    versions = Dataset.from_dict({"label": ["3.10", "3.11", "dev"] * 5})
    assert LabelSpec.from_dataset(versions).names == ("3.10", "3.11", "dev")


def test_regression_names_the_row_that_is_no_number():
    data = Dataset.from_dict({"label": ["1", "2", "x"]})
    with pytest.raises(ValueError, match="Row 2 of split 'train', column 'label': expected a number"):
        LabelSpec.from_dataset(data, problem_type="regression")


@pytest.mark.parametrize(
    "labels, message", [([1.0, 1e39], "Row 1.*below 3.4e\\+38.*got 1e\\+39"), ([[], []], "No row")]
)
def test_labels_that_cannot_be_learnt(labels, message):
    with pytest.raises(ValueError, match=message):
        LabelSpec.from_dataset(Dataset.from_dict({"label": labels}))


def test_labels_that_hardly_differ_are_warned_of(monkeypatch):
    said = []
    monkeypatch.setattr("hf_dgl.data.labels.logger.warning", said.append)
    LabelSpec.from_dataset(Dataset.from_dict({"label": [1e-44, 2e-44]}))
    assert "multiply them first" in said[0]


@pytest.mark.parametrize(
    "labels, is_said",
    [
        (list(range(51_000, 51_040)), True),
        ([f"{i}" for i in range(40)], True),
        (["0.5", "1.5"] * 20 + ["N/A"], True),
        ([0, 1] * 20, False),
        (["a", "b", "1.5"] * 10, False),
    ],
)
def test_numbers_that_are_taken_for_classes_are_told(labels, is_said, monkeypatch):
    said = []
    monkeypatch.setattr("hf_dgl.data.problem_types.logger.warning", said.append)
    spec = LabelSpec.from_dataset(Dataset.from_dict({"label": labels}))
    assert spec.problem_type == "single_label_classification"
    assert bool(said) == is_said and all("For a regression: `problem_type: regression`" in line for line in said)


@pytest.mark.parametrize(
    "labels, message",
    [
        (["1,5", "2,5", "3,0"] * 5, "Labels like '1,5' are taken for names of classes, of which there are 3"),
        (["51 000", "$1,200.50", "7"] * 5, "no thousands apart, no unit"),
        ([["1,5", "2"], ["2,5", "3"]] * 5, "Labels like '1,5'"),  # label=[price, weight]
        (["cat", "dog", "cat,dog"] * 5, "Labels like 'cat,dog' are taken for one class each"),
        (["cat|dog", "dog|bird", "cat", "dog"] * 5, "Labels like 'cat|dog' are"),
        (["['cat', 'dog']", "['dog']", "[]"] * 5, r"Labels like \"\['cat', 'dog'\]\" are .*, which jsonl and parquet"),
        (["[0, 1]", "[1, 0]"] * 5, r"Labels like '\[0, 1\]'"),
        ([1.0, 2.0, 3.0] * 5, "taken for a regression. If they name classes"),
        (["Paris, France", "Lyon, France", "Bonn"] * 5, None),
        (["2020-01-01", "12.05.2020", "1.2.3"] * 5, None),
        (["3,5 mm", "4 mm", "a-b"] * 5, None),
        ([1.5, 2.0] * 5, None),
    ],
)
def test_what_labels_may_mean_is_told(labels, message, monkeypatch):
    told = []
    monkeypatch.setattr("hf_dgl.data.problem_types.logger.warning", told.append)
    data = Dataset.from_dict({"label": labels})
    spec = LabelSpec.from_dataset(data)
    assert re.search(message, told[0]) if message else not told, told
    told.clear()
    LabelSpec.from_dataset(data, spec.problem_type)  # who says it needs not be told
    assert not told


@pytest.mark.parametrize("problem_type", [None, "regression", "single_label_classification"])
@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), 1e300])
@pytest.mark.parametrize("streaming", [False, True])
def test_infinite_labels_are_broken_rows(bad, problem_type, streaming, processor):
    """`--on_error skip` stopped at them, `hf-dgl data` said nothing but the first."""
    rows = Dataset.from_dict({"text": list("abcd"), "label": [1.0, bad, 2.0, bad]})
    source = DatasetDict(train=rows, validation=rows)
    splits = load_data(source, modalities=["text"], test_split=None, streaming=streaming)
    names = ["1", "2"] if problem_type == "single_label_classification" else None
    if not streaming:
        with pytest.raises(ValueError, match=r"Row train\[1\] .*its label: expected a .*number.*--on_error skip"):
            LabelSpec.from_dataset(splits["train"], problem_type, class_names=names)
        found = [str(row) for row in inspect_data(splits, processor, problem_type).broken]
        assert [row.split(",")[0] for row in found[:2]] == ["train: row train[1]", "train: row train[3]"]
    left = prepare_splits(splits, processor, on_error="skip")
    spec = LabelSpec.from_dataset(left["train"], problem_type, class_names=names)
    expected = [0, 1] if names else [1.0, 2.0]
    assert [row["label"] for row in encode_labels(left, spec, "skip")["validation"]] == expected


def test_ones_and_zeros_as_texts_are_no_names():
    with pytest.raises(ValueError, match="must be multi-hot"):
        LabelSpec.from_dataset(Dataset.from_dict({"label": [["0", "1"], ["1", "0"]]}))
