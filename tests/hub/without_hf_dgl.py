"""Loads a model by Transformers alone, where `import hf_dgl` is impossible; prints what it found as JSON.

`python -I tests/hub/without_hf_dgl.py REPO EXPECTED.pt`
"""

from __future__ import annotations

import json
import sys
from typing import Any


class NoHfDgl:
    """The package is installed in the tests' environment: whoever imports it fails as if it were not."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name.partition(".")[0] in ("hf_dgl", "tests"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


sys.meta_path.insert(0, NoHfDgl())  # type: ignore[arg-type]

import torch  # noqa: E402
from transformers import AutoModel, AutoModelForSequenceClassification, AutoProcessor  # noqa: E402

try:
    import hf_dgl  # noqa: F401
except ModuleNotFoundError:
    pass
else:
    sys.exit("hf_dgl can be imported")

repo_id, path = sys.argv[1:]
expected = torch.load(path, weights_only=False)
processor = AutoProcessor.from_pretrained(repo_id, trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained(repo_id, trust_remote_code=True)
headless = AutoModel.from_pretrained(repo_id, trust_remote_code=True)
inputs = processor(**expected["rows"])
with torch.no_grad():
    logits = model(**inputs).logits
    pooled = headless(**inputs).pooler_output
    logits_of_pooled = model.classifier(pooled)
print(
    json.dumps(
        {
            "inputs": all(
                torch.equal(inputs[m][k], v) for m, part in expected["inputs"].items() for k, v in part.items()
            ),
            "logits": torch.equal(logits, expected["logits"]),
            "headless": torch.equal(logits_of_pooled, logits),
            "module": type(model).__module__,
            "imported": sorted(name for name in sys.modules if name.partition(".")[0] == "hf_dgl"),
        }
    )
)
