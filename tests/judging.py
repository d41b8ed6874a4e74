"""On which tasks a rule for `adaptive_dgl` may be chosen, and on which it is judged: split once, before any tuning.

The split was committed on 2026-11-28, before the rules of that day were tried. What had been looked at in earlier
rounds (`recipes/results/README.md`): of the tuning tasks all but `gated`, of the judging tasks the scores of
`audio_text`, `image_audio_text`, `size_and_sum` and `larger` under the rule before; nothing was chosen by these.
`match` and `same_size` had never been trained with `adaptive_dgl`. The tasks on real pictures (`recipes/real/`) are
for judging, too.
"""

from __future__ import annotations

from typing import NamedTuple


class Task(NamedTuple):
    """A recipe, and the words that go with it."""

    recipe: str
    words: tuple[str, ...] = ()


def _two_digits(sample: str) -> Task:
    return Task("quickstart/two_digits", ("--dataset_name", f"sample:{sample}"))


TUNING = {
    "image_text": Task("quickstart/image_text"),
    **{sample: _two_digits(sample) for sample in ("sum_mod_3", "question", "irrelevant_text")},
    "gated": Task("tests.regimes gated"),
}
"""Tasks by which constants and rules may be chosen."""

JUDGING = {
    "audio_text": Task("quickstart/audio_text"),
    "image_audio_text": Task("quickstart/image_audio_text"),
    **{sample: _two_digits(sample) for sample in ("size_and_sum", "larger", "match", "same_size")},
}
"""Tasks that say how good the rule is; nothing is chosen by them."""
