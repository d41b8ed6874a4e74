"""`hf-dgl`: one file per command, each of which parses, calls the library and prints.

What a command does is a function of the library, so nothing below imports this. A command imports what it needs when
it runs: `hf-dgl --help` loads no torch.
"""

from __future__ import annotations

import argparse
import difflib
import io
import os
import sys
import time
import traceback
from collections.abc import Sequence
from typing import NoReturn

import hf_dgl

from . import (
    benchmark,
    compare,
    completion,
    data,
    demo,
    diagnose,
    env,
    evaluate,
    export,
    inspect,
    predict,
    push,
    recipes,
    train,
)

_COMMANDS = [
    *(recipes, data, train, evaluate, predict, demo, export, inspect, diagnose, compare, benchmark, push),
    *(completion, env),
]
_OTHERS_WAIT = 5.0  # seconds, in which a launcher ends the other processes if process 0 has failed
_USER_ERRORS = (ValueError, OSError, FloatingPointError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after `hf-dgl`; those of this process by default.

    Returns:
        The exit code: 0; 1 when `hf-dgl data` found broken rows; 2 when the user's input is at fault, with one
        message on stderr; 130 after Ctrl-C.

    Example:

        >>> main(["env"])
        0
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # labels that a terminal's encoding lacks shall not end a training
        sys.stdout.reconfigure(errors="backslashreplace")
    arguments, rest = build_parser().parse_known_args(argv)
    try:
        code: int | None = arguments.run(arguments, rest)
    except _USER_ERRORS as error:
        if arguments.traceback:
            raise
        _let_go_of_frames(error)
        _say_once(arguments.command, _message(error))
        return 2
    except KeyboardInterrupt:
        if arguments.traceback:
            raise
        print(f"hf-dgl {arguments.command}: {arguments.when_interrupted}", file=sys.stderr)
        return 130
    if "WORLD_SIZE" in os.environ:  # started by a launcher
        from hf_dgl.training.parallelism import leave_process_group  # imports torch, which `--help` must not wait for

        leave_process_group()
    return code or 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of `hf-dgl`, with every command. Keys of recipes are not in it: those are read by `hf_dgl.recipe`."""
    parser = _Parser(
        prog="hf-dgl",
        description="Fine-tune multimodal transformers with disentangled gradient learning.",
        epilog="Type first: hf-dgl train quickstart/image_text",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hf-dgl {hf_dgl.__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    common.set_defaults(when_interrupted="stopped.")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=argparse.ArgumentParser
    )
    for command in _COMMANDS:
        command.add_parser(commands, common)
    return parser


class _Parser(argparse.ArgumentParser):
    """Guesses which command was meant."""

    def error(self, message: str) -> NoReturn:
        names = [command.__name__.rpartition(".")[2] for command in _COMMANDS]
        typed = message.partition("invalid choice: '")[2].partition("'")[0]
        if typed and (near := difflib.get_close_matches(typed, names, 1)):
            message = f"no command {typed!r}: did you mean {near[0]!r}? Commands: {', '.join(names)}."
        super().error(message)


def _say_once(command: str, message: str) -> None:
    """One message, however many processes were launched: what process 0 found, too, ends the others as they wait."""
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        time.sleep(_OTHERS_WAIT)
        command += f", process {rank}"
    print(f"hf-dgl {command}: {message}", file=sys.stderr)


def _let_go_of_frames(error: BaseException | None) -> None:
    """Ends a loader that the error has left behind: later, as garbage in a cycle, it waits 5 s for each worker."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def _message(error: Exception) -> str:
    """What went wrong; torch hands on the errors of a loader's worker processes with their tracebacks in front."""
    text = str(error)
    if any(sign in text for sign in ("hf_", "api_", "://")):
        from hf_dgl.hub.tokens import redacted  # which imports what most messages need not wait for

        text = redacted(text)
    return text.rsplit(f"\n{type(error).__name__}: ", 1)[-1].strip() if text.startswith("Caught ") else text
