"""On which tasks a rule for `adaptive_dgl` may be chosen, and on which it is judged: split once, before any tuning.

    OMP_NUM_THREADS=1 python -m tests.judging run outputs/judging             # trains; goes on where it was stopped
    OMP_NUM_THREADS=1 python -m tests.judging diagnose outputs/judging        # what `hf-dgl diagnose` advises for each
    OMP_NUM_THREADS=1 python -m tests.judging run match larger outputs/judging    # some by name

The split was committed on 2026-11-28, before the rules of that day were tried. What had been looked at in earlier
rounds: of the tuning tasks all but `gated`, of the judging tasks the scores of `audio_text`, `image_audio_text`,
`size_and_sum` and `larger` under the rule before; nothing was chosen by these. `match` and `same_size` had never been
trained with `adaptive_dgl`. The tasks on real pictures (`recipes/real/`) are for judging, too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from hf_dgl.recipe.shipped import find_recipe

METHODS, SEEDS = ("joint", "dgl", "adaptive_dgl"), (0, 1, 2)


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


def main(words: list[str]) -> None:
    """Trains, or diagnoses, all judging tasks or those that are named."""
    what, *names, folder = words
    for name in names or JUDGING:
        task, out = JUDGING[name], Path(folder, name)
        if what == "run":
            from hf_dgl.analysis.comparison.run import compare

            compare(find_recipe(task.recipe), METHODS, SEEDS, out, task.words, jobs=1)
        else:
            from hf_dgl.analysis.diagnosis import diagnose

            found = diagnose(find_recipe(task.recipe), task.words, out / "diagnosis")
            print(name, found.regime.name if found.regime else None, found.method, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
