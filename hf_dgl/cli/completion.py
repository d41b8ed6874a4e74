"""`hf-dgl completion SHELL`: the script that completes commands, options, keys of recipes and names of recipes."""

from __future__ import annotations

import argparse
from typing import Any

_SHELLS = ("bash", "zsh", "tcsh")
_WITH_KEYS = ("train", "evaluate", "data", "diagnose", "compare", "benchmark")
"""Commands that take the keys of a recipe as options."""


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to `hf-dgl`."""
    parser = commands.add_parser(
        "completion",
        parents=[common],
        allow_abbrev=False,
        help="a script for your shell that completes what you type",
        description="Print a script that completes commands, options, keys and recipes. For bash: hf-dgl completion "
        "bash >> ~/.bash_completion. For zsh: hf-dgl completion zsh > a file _hf-dgl in a folder of $fpath.",
    )
    parser.add_argument("shell", choices=_SHELLS, help="which shell")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Prints the script."""
    import shtab

    from hf_dgl.recipe.shipped import shipped_recipes

    from . import build_parser

    if rest:
        raise ValueError(f"`hf-dgl completion` takes the shell only, got {' '.join(rest)!r}.")
    parser = build_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name in _WITH_KEYS:
        _add_keys(commands.choices[name])
    for command in commands.choices.values():
        for action in command._actions:
            if action.dest == "recipe":
                action.choices = list(shipped_recipes())
    print(shtab.complete(parser, shell=arguments.shell))


def _add_keys(command: argparse.ArgumentParser) -> None:
    from hf_dgl.recipe.recipe import build_parser

    if not any(action.dest == "recipe" for action in command._actions):
        command.add_argument("recipe", nargs="?")
    known = command._option_string_actions
    for key in build_parser()._actions:
        names = [name for name in key.option_strings if name.startswith("--") and name not in known]
        if names:
            help_text = (key.help or "").split(". ")[0].replace("%", "%%")
            command.add_argument(
                *names, choices=key.choices, nargs=key.nargs if key.nargs != 0 else None, help=help_text
            )
