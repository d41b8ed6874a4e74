"""`hf-dgl push OUT user/name [--private] [--revision BRANCH] [--space]`."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to `hf-dgl`."""
    parser = commands.add_parser(
        "push",
        parents=[common],
        allow_abbrev=False,
        help="upload a fine-tuned model to the Hub",
        description="Upload what training saved: model, processor, card, report. Optimizer state, arguments and logs "
        "stay here. The token is that of `hf auth login`, or HF_TOKEN.",
    )
    parser.add_argument("model", metavar="OUT", help="the folder that `hf-dgl train` wrote, its `adapter`, ...")
    parser.add_argument("repo_id", metavar="user/name", help="the repository; made if it is not there")
    parser.add_argument("--private", action="store_true", help="a new repository that nobody else can see")
    parser.add_argument("--revision", metavar="BRANCH", help="default: main; made if it is not there")
    parser.add_argument("--space", action="store_true", help="also make a Space user/name-demo: a page to try it on")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Prints the addresses of what was uploaded."""
    from hf_dgl.hub.publish import push, push_space

    if rest:
        raise ValueError(f"Did not understand {' '.join(rest)!r}. `hf-dgl push --help` lists what there is.")
    # Without --private the account's own default holds.
    print(push(arguments.model, arguments.repo_id, private=arguments.private or None, revision=arguments.revision))
    if arguments.space:
        print(push_space(arguments.repo_id, private=arguments.private or None))
