"""`hf-dgl demo OUT [--examples DIR]`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

_NUM_EXAMPLES = 3


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to `hf-dgl`."""
    parser = commands.add_parser(
        "demo",
        parents=[common],
        allow_abbrev=False,
        help="try a fine-tuned model on a page in the browser",
        description="Serve a page on which a fine-tuned model can be tried, on this machine only unless --host says "
        "otherwise. Stop it with Ctrl+C. Needs gradio: "
        'pip install -c constraints.txt -e ".[demo]" in a checkout, pip install "hf-dgl[demo]" elsewhere.',
    )
    parser.add_argument("model", metavar="OUT", help="the folder that `hf-dgl train` wrote, or a Hub id")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="0.0.0.0 lets other machines in: whoever reaches the port may ask (no password; files up to 20 MB), "
        "one question at a time; default: 127.0.0.1, this machine only",
    )
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument("--device", help="cpu, cuda, ...; default: the accelerator if there is one")
    parser.add_argument(
        "--examples",
        metavar="DIR",
        help="rows to click on, from `hf-dgl data RECIPE --save_rows 3 DIR`; default: of a model of sample data, some "
        "of those",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Serves until it is stopped; gradio prints the address."""
    from hf_dgl.inference.demo import launch

    if rest:
        raise ValueError(f"Did not understand {' '.join(rest)!r}. `hf-dgl demo --help` lists what there is.")
    from hf_dgl.models.extras import require

    require("The demo", "demo", "gradio")
    with tempfile.TemporaryDirectory() as folder:
        launch(
            arguments.model,
            host=arguments.host,
            port=arguments.port,
            device=arguments.device,
            examples=_examples(arguments.model, arguments.examples, folder),
        )


def _examples(model: str, given: str | None, folder: str) -> list[dict[str, Any]] | None:
    """Rows of the user's choice, or of the sample data that a model was trained on; None: what its card has."""
    from hf_dgl.data.saved_rows import read_rows, save_rows
    from hf_dgl.data.sources import SAMPLE_PREFIX

    if given is not None:
        return read_rows(given)
    recipe = Path(model, "recipe.yaml")
    if not recipe.is_file():
        return None
    from hf_dgl.models.native import load_trained
    from hf_dgl.recipe.assembly import load_splits
    from hf_dgl.recipe.recipe import load_recipe

    loaded = load_recipe(recipe)
    if not str(loaded.data.dataset_name).startswith(SAMPLE_PREFIX):  # a user's own rows are shown on request only
        return None
    _, processor = load_trained(model)
    save_rows(load_splits(loaded, processor.modalities)["test"], processor, folder, _NUM_EXAMPLES)
    return read_rows(folder)
