"""Pictures with English sentences and French speech, of Debian's package tuxpaint-stamps-default.

    python recipes/real/stamps.py data/stamps

downloads the package by its name (apt; 161 MB) and writes below OUT the tables train.csv, validation.csv and test.csv:

    photo           path of a picture (at most 256 px)
    speech          path of a French recording of the sentence (16 kHz)
    sentence        as it is: nearly gives the category away
    hidden_words    the sentence, each word hidden with probability 0.5
    wrong_sentence  the sentence; in 0.4 of the rows that of a picture drawn at random
    category        12 classes

and two folders of such tables with questions about the pictures, two of each:

    nature          photo, question ("Is it made by people?", "Does it grow?", ...), answer (yes, no). Of every picture
                    one question about things and one about nature: neither it nor a question alone tells the answer.
    question        One of the two asks "What is this?" (or likewise), and the answer is the category. The picture
                    alone tells that one.

Left out are the letters of alphabets (158 pictures: each letter comes in several styles) and categories of fewer than
12 pictures. Splits are by picture: 50 % train, 15 % validation, 35 % test of each category. What is hidden, exchanged
or asked is drawn once per row.

Pictures, sentences and speech: (c) 2002-2022 Bill Kendrick and contributors to Tux Paint, GPL-2 (the package's file
usr/share/doc/tuxpaint-stamps-default/copyright). None of them comes with hf_dgl.
"""

from __future__ import annotations

import random
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import soundfile
import soxr
from loading import Row, common, exchange, hide_words, read_arguments, save, shares, split_rows
from PIL import Image

PACKAGE = "tuxpaint-stamps-default"
STAMPS = "usr/share/tuxpaint/stamps"
MIN_ROWS = 12  # of a category
PIXELS, RATE = 256, 16000
NATURE = ("animals", "food", "plants")
MADE = ("clothes", "hobbies", "household", "seasonal", "sports", "town", "vehicles")
QUESTIONS = {  # about the one and about the other
    NATURE: ("Does it grow?", "Is this a part of nature?", "Is it an animal or a plant?", "Has it ever been alive?"),
    MADE: ("Is it made by people?", "Has somebody built this?", "Is this a thing?", "Does it come from a factory?"),
}
WHAT = ("What is this?", "What kind of picture is it?", "What do you see?", "Which category is this?")


def unpacked(package: Path | None, scratch: Path) -> Path:
    """The folder of the stamps: of an unpacked package, of this machine, or of a package that is downloaded."""
    for root in (package, Path("/")):
        if root is not None and (root / STAMPS).is_dir():
            return root / STAMPS
    if package is None:
        scratch.chmod(0o777)  # apt downloads as a user of its own
        subprocess.run(["apt-get", "download", PACKAGE], cwd=scratch, check=True)
        (package,) = scratch.glob("*.deb")
    if not package.is_file():
        raise SystemExit(f"--package: expected {PACKAGE}_*.deb or a folder with {STAMPS} in it, got {package}.")
    subprocess.run(["dpkg-deb", "-x", str(package), str(scratch)], check=True)
    return scratch / STAMPS


def find_rows(root: Path) -> list[Row]:
    """Every picture that has a sentence and a recording."""
    rows = []
    for picture in sorted(root.rglob("*.png")):
        text, sound = picture.with_suffix(".txt"), picture.with_name(f"{picture.stem}_desc_fr.ogg")
        parts = picture.relative_to(root).parts
        if picture.stem.endswith(("_mirror", "_flip")) or parts[1] == "alphabets":
            continue
        if not text.is_file() or not sound.is_file():
            continue
        sentence = text.read_text(encoding="utf-8", errors="replace").splitlines()[0].strip()
        if sentence:
            rows.append({"photo": str(picture), "speech": str(sound), "sentence": sentence, "category": parts[0]})
    return rows


def store_media(row: Row, number: int, out: Path) -> None:
    """Copies a row's picture and recording, small; the row then names the copies."""
    photo, speech = f"photos/{number}.png", f"speech/{number}.wav"
    with Image.open(row["photo"]) as picture:
        small = picture.convert("RGBA")
    small.thumbnail((PIXELS, PIXELS))
    small.save(out / photo)
    samples, rate = soundfile.read(row["speech"], always_2d=True)
    soundfile.write(out / speech, soxr.resample(samples.mean(axis=1), rate, RATE), RATE)
    row |= {"photo": photo, "speech": speech}


def asked(rows: Sequence[Row], is_mixed: bool, draw: random.Random) -> list[Row]:
    """Two rows per picture: with `is_mixed` one asks what it is, else one about nature and one about things."""
    found = []
    for index, row in enumerate(rows):
        photo, pairs = f"../{row['photo']}", list(QUESTIONS.items())
        answered = [(draw.choice(texts), "yes" if row["category"] in kinds else "no") for kinds, texts in pairs]
        if is_mixed:
            answered = [answered[index % 2], (draw.choice(WHAT), row["category"])]
        found += [{"photo": photo, "question": question, "answer": answer} for question, answer in answered]
    draw.shuffle(found)
    return found


def main() -> None:
    arguments = read_arguments(__doc__ or "", f"the .deb file of {PACKAGE}, or a folder that it was unpacked to")
    out, draw = arguments.out, random.Random(arguments.seed)
    for folder in ("photos", "speech"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        rows = common(find_rows(unpacked(arguments.package, Path(scratch))), "category", MIN_ROWS)
        for number, row in enumerate(rows):
            store_media(row, number, out)
    splits = split_rows(rows, "category", draw)
    for part in splits.values():
        for row in part:
            row["hidden_words"] = hide_words(row["sentence"], 0.5, draw)
        exchange(part, "sentence", "wrong_sentence", 0.4, draw)
    print(f"{out}: {save(splits, out)} rows; {shares(rows, 'category')}")
    for task in ("nature", "question"):
        tables = {
            name: asked([row for row in part if row["category"] in NATURE + MADE], task == "question", draw)
            for name, part in splits.items()
        }
        print(f"{out / task}: {save(tables, out / task)} rows; {shares(tables['train'], 'answer')}")


if __name__ == "__main__":
    main()
