"""The table of known classes as a person reads it: `hf-dgl inspect --list`, and the page `recipes/models.md`."""

from __future__ import annotations

from typing import Any

from hf_dgl.architectures import ARCHITECTURES

_HEAD = """# Known models

Classes whose modalities need no declaration: `disentangle(model)`, `DGLTrainer(model, ...)` and `hf-dgl train` know
where they live. Written by `hf-dgl inspect --list --markdown > recipes/models.md`; do not edit. A class that is not
here may be found by `modalities="auto"`, or declared.
"""


def known_models() -> dict[str, dict[str, Any]]:
    """Class name -> its row: `modalities`, `method` (the default), `absent`, `note`, `partitions`, or `refused`.

    Example:

        >>> known_models()["Qwen2_5_VLForConditionalGeneration"]["modalities"]
        ['image', 'text']
    """
    found: dict[str, dict[str, Any]] = {}
    for name, row in ARCHITECTURES.items():
        if row.refused:
            found[name] = {"refused": row.refused}
        else:
            found[name] = {
                "modalities": list(row.modalities),
                "method": row.method,
                "absent": row.absent,
                "note": row.note,
                "partitions": list(row.partitions),
            }
    return found


def known_models_page() -> str:
    """The table in Markdown. What many rows say is said once, under a number."""
    rows = known_models()
    absences, notes, reasons = _Numbered("A"), _Numbered("N"), _Numbered("R")
    known, refused = [], []
    for name in sorted(rows):
        row = rows[name]
        if "refused" in row:
            refused.append(f"| `{name}` | {reasons.mark(row['refused'])} |")
            continue
        cells = [", ".join(row["modalities"]), f"`{row['method']}`", absences.mark(row["absent"])]
        known.append(f"| `{name}` | {' | '.join([*cells, notes.mark(row['note'])])} |")
    parts = [
        _HEAD,
        f"\n{len(known)} classes. What an absent modality is (A) and what else to know (N) is below.\n",
        "\n| class | modalities | default method | absent | note |\n|---|---|---|---|---|\n",
        "\n".join(known),
        f"\n\n## Absent\n\n{absences}\n\n## Notes\n\n{notes}\n",
        f"\n## Refused\n\n{len(refused)} classes for which one modality alone has no loss.\n",
        "\n| class | reason |\n|---|---|\n",
        "\n".join(refused),
        f"\n\n{reasons}\n",
    ]
    return "".join(parts)


class _Numbered:
    """Texts, each once, with a mark to refer to it by."""

    def __init__(self, letter: str) -> None:
        self.letter, self.texts = letter, list[str]()

    def mark(self, text: str) -> str:
        if not text:
            return ""
        if text not in self.texts:
            self.texts.append(text)
        return f"{self.letter}{self.texts.index(text) + 1}"

    def __str__(self) -> str:
        return "\n".join(f"- **{self.mark(text)}**: {text}" for text in self.texts)
