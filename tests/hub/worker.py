"""What a user of the Hub does, in a process whose Hub is the one that HF_ENDPOINT names.

`python -m tests.hub.worker` reads jobs, a line of JSON each: `{"call": function below, "env": {...}, ...arguments}`,
and answers each with a line of JSON. The libraries are imported once; every job is forked from there.
"""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import huggingface_hub.utils._http
import torch
import transformers
from huggingface_hub import HfApi, snapshot_download

import hf_dgl.recipe.finetune
from hf_dgl import CrossModalForSequenceClassification, CrossModalPipeline, CrossModalProcessor
from hf_dgl.cli import main
from hf_dgl.models.adapters import load_model
from hf_dgl.recipe.recipe import make_recipe
from tests.recipes import tiny_recipe
from tests.tiny import tiny_rows

LOADERS: dict[str, Any] = {
    "class": CrossModalForSequenceClassification.from_pretrained,
    "auto": transformers.AutoModelForSequenceClassification.from_pretrained,
    "load_model": load_model,
    "pipeline": lambda *words, **kwargs: CrossModalPipeline.from_pretrained(*words, device="cpu", **kwargs).model,
}


def cli(words: list[str]) -> dict[str, Any]:
    """`hf-dgl WORDS`: its exit code and what it prints."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        transformers.logging.enable_default_handler()
        code = main(words)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue()}


def train(recipe: dict[str, Any], then_push: dict[str, Any] | None = None) -> dict[str, Any]:
    """Fine-tunes; `then_push` are arguments of a `trainer.push_to_hub` that follows."""
    result = hf_dgl.recipe.finetune.finetune(make_recipe(tiny_recipe(**recipe)))
    if then_push is not None:
        result.trainer.push_to_hub(**then_push)
    return {"steps": result.trainer.state.global_step}


def same(local: str, repo_id: str, how: str = "class", **kwargs: Any) -> dict[str, Any]:
    """Whether what is loaded from the Hub answers bit for bit as the folder does, on the same raw rows."""
    batches = []
    for source, options in ((local, {}), (repo_id, kwargs)):
        processor = CrossModalProcessor.from_pretrained(source, **options)
        rows = tiny_rows()
        inputs = processor(image=[row["image"] for row in rows], text=[row["text"] for row in rows])
        model = (load_model if source == local else LOADERS[how])(source, **options).eval()
        with torch.no_grad():
            batches.append((inputs, model(**inputs).logits))
    (a, logits_a), (b, logits_b) = batches
    inputs_equal = all(torch.equal(a[name][key], b[name][key]) for name in a for key in a[name])
    return {"inputs": inputs_equal, "logits": torch.equal(logits_a, logits_b), "rows": len(logits_b)}


def expected(local: str, path: str) -> None:
    """Leaves rows, and what the folder's model makes of them, for a process without hf_dgl."""
    rows = tiny_rows()
    given = {name: [row[name] for row in rows] for name in ("image", "text")}
    inputs = CrossModalProcessor.from_pretrained(local)(**given)
    with torch.no_grad():
        logits = load_model(local)(**inputs).logits
    torch.save({"rows": given, "inputs": inputs, "logits": logits}, path)


def look(repo_id: str, folder: str) -> dict[str, Any]:
    """Lists and downloads with the real client."""
    listed = HfApi().list_repo_files(repo_id)
    snapshot_download(repo_id, local_dir=folder)
    return {"listed": sorted(listed), "private": HfApi().model_info(repo_id).private}


def run_code(code: str, cwd: str) -> str:
    os.chdir(cwd)
    out = io.StringIO()
    with redirect_stdout(out):
        exec(code, {})
    return out.getvalue()


def _answer(job: dict[str, Any]) -> Any:
    os.environ.update(job.pop("env", {}))
    for name, value in job.pop("constants", {}).items():
        setattr(huggingface_hub.constants, name, value)
    huggingface_hub.utils._http.time.sleep = lambda _: None  # its retries wait for seconds
    try:
        return globals()[job.pop("call")](**job)
    except BaseException as error:  # noqa: BLE001 (the test shall see it)
        return {"raised": type(error).__name__, "message": str(error), "trace": traceback.format_exc()}


def serve() -> None:
    for line in sys.stdin:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            answer = json.dumps(_answer(json.loads(line)))
            with os.fdopen(writing, "w") as pipe:
                pipe.write(answer)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            answer = pipe.read()
        os.waitpid(child, 0)
        sys.__stdout__.write((answer or '{"raised": "died"}') + "\n")  # type: ignore[union-attr]
        sys.__stdout__.flush()  # type: ignore[union-attr]


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr  # what the libraries print is no answer
    sys.__stdout__ = answers  # type: ignore[misc]
    Path(os.environ["HF_HOME"]).mkdir(parents=True, exist_ok=True)
    serve()
