"""Ctrl-C during training: the step is finished and saved, and one line says how to go on."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from hf_dgl.hub.tokens import redacted
from hf_dgl.training.checkpoints import newest_complete

_SECRET = ("token", "hub_token")
_NOT_AGAIN = ("overwrite_output_dir", "resume_from_checkpoint", *_SECRET)


class StopAfterThisStep(TrainerCallback):
    """The first Ctrl-C ends the run at the end of its step, after a checkpoint; the second at once.

    Where the recipe saves nothing, or several processes would have to agree, the first ends it at once, too.

    Example:

        >>> with StopAfterThisStep().listening() as stop:
        ...     finetune(recipe, before_training=stop.watch)
    """

    def __init__(self) -> None:
        self.trainer: Any = None
        self._is_wanted = False
        self._can_save = False

    @contextmanager
    def listening(self) -> Iterator[StopAfterThisStep]:
        """Takes Ctrl-C until the block ends."""
        before = signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield self
        finally:
            signal.signal(signal.SIGINT, before)

    def watch(self, trainer: Any) -> None:
        """Becomes the first callback: others make a checkpoint wait for what else is due at its step."""
        self.trainer = trainer
        trainer.callback_handler.callbacks.insert(0, self)

    def _on_signal(self, *_: Any) -> None:
        if self._is_wanted or not self._can_save:
            raise KeyboardInterrupt
        self._is_wanted = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._can_save = args.save_strategy != "no" and args.world_size == 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_save |= self._is_wanted

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._is_wanted:
            raise KeyboardInterrupt

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._can_save = False  # what follows is scoring; the model is saved by then, or will be by the run itself
        if self._is_wanted:
            raise KeyboardInterrupt


def how_to_go_on(words: Sequence[str], trainer: Any) -> str:
    """What is told when a training was interrupted.

    Args:
        words: Of the command line, behind `hf-dgl train`.
        trainer: None if there was none yet.

    Example:

        >>> how_to_go_on(["quickstart/image_text"], trainer)
        'stopped at step 137; go on with: hf-dgl train quickstart/image_text --resume_from_checkpoint true'
    """
    if trainer is None:
        return "stopped before training."
    stopped = f"stopped at step {trainer.state.global_step}"
    newest = newest_complete(str(trainer.args.output_dir))
    if newest is None:
        return f"{stopped}; no checkpoint had been saved yet."
    step = int(newest.rpartition("-")[2])
    since = "" if step == trainer.state.global_step else f" (from step {step}, the last that was saved)"
    command = shlex.join(["hf-dgl", "train", *_without(words, _NOT_AGAIN), "--resume_from_checkpoint", "true"])
    has_token = "" if _without(words, _SECRET) == [*words] else " (and the token, which is not shown)"
    return f"{stopped}; go on with{since}{has_token}: {redacted(command)}"


def _without(words: Sequence[str], keys: Sequence[str]) -> list[str]:
    """A command line without some options and what belongs to them."""
    kept, is_left_out = [], False
    for word in words:
        if word.startswith("--"):
            is_left_out = word[2:].partition("=")[0].replace("-", "_") in keys
        if not is_left_out:
            kept.append(word)
    return kept
