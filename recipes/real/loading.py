"""What the loaders of this folder share: seeded splits, sentences that say less than they did, tables on disk."""

from __future__ import annotations

import argparse
import csv
import random
import string
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

SHARES = {"train": 0.5, "validation": 0.15}  # of the rows; the rest is the test split
GAP = "…"

Row = dict[str, str]


def read_arguments(description: str, package: str) -> argparse.Namespace:
    """The command line that all loaders have: OUT, --package, --seed."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the tables and the files they name")
    parser.add_argument("--package", type=Path, help=package)
    parser.add_argument("--seed", type=int, default=0, help="of the splits and of what is hidden (default: 0)")
    return parser.parse_args()


def common(rows: Sequence[Row], label: str, at_least: int) -> list[Row]:
    """The rows whose class has so many of them."""
    counts = Counter(row[label] for row in rows)
    return [row for row in rows if counts[row[label]] >= at_least]


def split_rows(rows: Sequence[Row], label: str, draw: random.Random) -> dict[str, list[Row]]:
    """Each class in the shares of [`SHARES`], at random; a row is in one split only."""
    splits: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for kind in sorted({row[label] for row in rows}):
        members = [row for row in rows if row[label] == kind]
        draw.shuffle(members)
        first, second = round(len(members) * SHARES["train"]), round(len(members) * sum(SHARES.values()))
        for name, part in zip(splits, (members[:first], members[first:second], members[second:]), strict=True):
            splits[name] += part
    for part in splits.values():
        draw.shuffle(part)
    return splits


def hide_words(sentence: str, rate: float, draw: random.Random) -> str:
    """Each word is replaced by a gap with this probability."""
    return " ".join(GAP if draw.random() < rate else word for word in sentence.split())


def misspell(name: str, rate: float, draw: random.Random) -> str:
    """Each letter is replaced by another one with this probability."""
    letters = (draw.choice(string.ascii_lowercase) if c.isalpha() and draw.random() < rate else c for c in name)
    return "".join(letters)


def exchange(rows: Sequence[Row], source: str, target: str, rate: float, draw: random.Random) -> None:
    """Adds a column: that of the same row, or with this probability that of some row of the split."""
    for row in rows:
        row[target] = draw.choice(rows)[source] if draw.random() < rate else row[source]


def save(splits: Mapping[str, Sequence[Row]], folder: Path) -> dict[str, int]:
    """Writes `train.csv`, `validation.csv`, `test.csv`; the number of rows of each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        with open(folder / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return {name: len(rows) for name, rows in splits.items()}


def shares(rows: Sequence[Row], label: str) -> str:
    """How many rows each class has, in words."""
    counts: defaultdict[str, int] = defaultdict(int)
    for row in rows:
        counts[row[label]] += 1
    return ", ".join(f"{kind} {count}" for kind, count in sorted(counts.items(), key=lambda pair: -pair[1]))
