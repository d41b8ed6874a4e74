"""`auto` against the table of known architectures, which others wrote: never a parameter to a wrong modality."""

from __future__ import annotations

import pytest

from hf_dgl.architectures import ARCHITECTURES, modalities_of
from hf_dgl.method.dataflow.propose import propose
from hf_dgl.method.modalities import resolve
from tests.architectures_tiny import TINY

KNOWN = [name for name, row in ARCHITECTURES.items() if not row.refused]
OTHER_WORDS = {"TvpForVideoGrounding": {"image": "video"}}
"""The table's word where it differs from the one that is read off the inputs' names."""

# What sees one modality only, and the table counts as fusion all the same: a legal choice, too.
FINER = {
    "CrossModalForSequenceClassification": "projections",
    "InstructBlipForConditionalGeneration": "qformer",
}


@pytest.mark.parametrize("name", KNOWN)
def test_auto_agrees_or_is_coarser(name: str) -> None:
    model, batch = TINY[name]()
    proposal = propose(model, batch)
    words = OTHER_WORDS.get(name, {})
    found = resolve(model, proposal.modalities).owners
    table = resolve(model, modalities_of(model)).owners
    finer = []
    for parameter, owners in found.items():
        proposed = {words.get(owner, owner) for owner in owners}
        if not proposed <= table[parameter]:
            assert not table[parameter], f"{parameter}: {proposed}, and the table says {set(table[parameter])}"
            finer.append(parameter)
    unexpected = [p for p in finer if not any(part in p for part in FINER.get(name, "nothing is").split("|"))]
    assert not unexpected, unexpected
