"""`hf-dgl demo OUT`."""

from __future__ import annotations

import argparse
from typing import Any

from hf_dgl.install import add_extra


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to `hf-dgl`."""
    parser = commands.add_parser(
        "demo",
        parents=[common],
        allow_abbrev=False,
        help="try a fine-tuned model on a page in the browser",
        description="Serve a page on which a fine-tuned model can be tried, on this machine only unless --host says "
        f"otherwise. Stop it with Ctrl+C. Needs gradio: {add_extra('demo')}",
    )
    parser.add_argument("model", metavar="OUT", help="the folder that `hf-dgl train` wrote, or a Hub id")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in; default: 127.0.0.1")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument("--device", help="cpu, cuda, ...; default: the accelerator if there is one")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Serves until it is stopped; gradio prints the address."""
    from hf_dgl.inference.demo import launch

    if rest:
        raise ValueError(f"Did not understand {' '.join(rest)!r}. `hf-dgl demo --help` lists what there is.")
    launch(arguments.model, host=arguments.host, port=arguments.port, device=arguments.device)
