"""What the toolkit adds to saving, resuming and pushing, whatever is trained: the base class of `DGLTrainer`.

What it overrides, and why, stands in the first line of each method.
"""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import transformers.trainer
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import Trainer
from transformers.optimization import GreedyLR
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, TrainOutput, has_length
from transformers.utils import logging

from hf_dgl.data.streaming import place_in_stream
from hf_dgl.hub.model_card import create_model_card, is_card_of_others
from hf_dgl.hub.uploads import copy_what_upstream_does_not, uploads
from hf_dgl.method.disentangle import Disentangled
from hf_dgl.models.adapters import complete_adapter
from hf_dgl.reports.curves import save_pictures
from hf_dgl.reports.model_picture import MODEL_PICTURE, draw_model
from hf_dgl.reports.model_tree import inspect_model

from .arguments import DGLTrainingArguments
from .callbacks import BlendAtEvaluations, NoteEpochs, RememberExplained
from .checkpoints import (
    amended,
    fault,
    replaced_at_once,
    rotate,
    to_resume,
    under_its_own_names,
)
from .disk import check_can_write, explaining_a_full_disk
from .manifest import write_manifest
from .resume import compare, settings_of, with_asked_settings
from .sums import SUMS, RememberSums

logger = logging.get_logger(__name__)

RESUMED = "ResumedWith"
"""Where `trainer_state.json` keeps the settings that changed when a run was resumed."""

KEPT_BY_US = (SUMS, RESUMED, RememberExplained.KEY, BlendAtEvaluations.KEY)
"""What `trainer_state.json` keeps of ours among `stateful_callbacks`."""


class SavingTrainer(Trainer):
    """`transformers.Trainer` whose checkpoints are whole or not there, and whose uploads hold nothing private.

    Attributes:
        recipe: The recipe that is trained, for the card; `""` if there is none.
        disentangled: The handle of the model in training.
        began, seconds_before: When this training began, and how long it had run before the checkpoint it resumed from.
    """

    args: DGLTrainingArguments
    recipe: str = ""
    disentangled: Disentangled | None = None
    began: float = 0.0
    seconds_before: float = 0.0
    _settings: Mapping[str, Any] = {}
    _changes: Sequence[str] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Notes where epochs end."""
        super().__init__(*args, **kwargs)
        self._epochs = NoteEpochs()
        self.add_callback(self._epochs)

    @property
    def _plain_model(self) -> nn.Module:
        assert self.model is not None
        return self.model

    def _settle(self, **values: Any) -> None:
        """Sets what only the model could tell. The user's arguments stay as they are: others may be made with them."""
        self.args = copy.copy(self.args)
        for name, value in values.items():
            setattr(self.args, name, value)

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Resumes from whole checkpoints of the same run only, and says what to do when nothing can be written."""
        folder = str(self.args.output_dir)
        if self.model is None:  # `hyperparameter_search` lets go of it after each trial
            self.model = self.model_wrapped = self.call_model_init(trial)
        self._settings, self._changes = settings_of(self), ()
        if resume_from_checkpoint:  # a folder, or True
            with self.args.main_process_first(local=self.args.save_on_each_node, desc="choosing the checkpoint"):
                resume_from_checkpoint = to_resume(resume_from_checkpoint, folder)
            self._changes = compare(resume_from_checkpoint, self._settings)
        self.remove_callback(RememberSums)
        self.add_callback(RememberSums(self))
        with explaining_a_full_disk(folder):
            if self.args.should_save:
                check_can_write(folder)
            try:
                return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
            except UnpicklingError as error:  # torch reads them with `weights_only=True`
                raise ValueError(
                    f"Cannot resume from {resume_from_checkpoint}: it holds other objects than tensors and numbers, "
                    "which could be any code. No Trainer wrote that."
                ) from error

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Trains no step beyond `max_steps` when the checkpoint of the last one is resumed (upstream trains one)."""
        epochs_trained, steps_trained = super()._init_training_state(*args, **kwargs)
        self.state.compute_steps(self.args, args[0])  # `logging_steps`, ... as asked for, not as they were
        checkpoint, trial = args[3:5]
        best = f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
        beside = os.path.join(os.path.dirname(os.path.abspath(checkpoint or "")), best)
        if self.state.best_model_checkpoint is None and os.path.isdir(beside):  # the folder was moved, or the user
            logger.warning(f"The best checkpoint is now {beside}.")
            self.state.best_model_checkpoint = beside
        if trial is not None:
            self._settings = settings_of(self)  # the trial's, which upstream has set just now
        if checkpoint is not None and not has_length(self.train_dataset) and not self.args.ignore_data_skip:
            place = place_in_stream(checkpoint, self.args.gradient_accumulation_steps)
            epochs_trained, steps_trained = place or (epochs_trained, steps_trained)
        if self._changes:  # for the card
            states: Any = self.state.stateful_callbacks  # a dict, whatever its annotation says
            states.setdefault(RESUMED, []).append(f"from step {self.state.global_step}: {'; '.join(self._changes)}")
        done = self.state.global_step >= self.state.max_steps
        return (self.state.num_train_epochs if done else epochs_trained), steps_trained

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Lets the learning rate that is asked for hold, where it is another than the checkpoint's."""
        if checkpoint is None or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        with with_asked_settings(self.optimizer, self.lr_scheduler, self._changes):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Says in one sentence that a checkpoint (without our manifest) is of another model."""
        try:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        except RuntimeError as error:
            if "size mismatch" not in str(error):
                raise
            first = str(error).partition("size mismatch for ")[2].partition("\n")[0]
            raise ValueError(
                f"Cannot resume from {resume_from_checkpoint}: it holds another model (size mismatch for {first})"
            ) from error

    def _load_best_model(self) -> None:
        """Does not end with a model that was damaged on the disk meanwhile."""
        best = str(self.state.best_model_checkpoint)
        problem = fault(best)
        if problem is not None:
            raise ValueError(
                f"The best model was to be loaded from {best} at the end of training, but {problem}. The newest "
                "checkpoint holds the last one: resume with `--load_best_model_at_end false` to end with that."
            )
        model = self.accelerator.unwrap_model(self._plain_model)
        is_sharded = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if hasattr(model, "peft_config") and not is_sharded and any(Path(best).glob("*/adapter_model*")):
            self._load_from_checkpoint(best)  # adapters with names lie in folders, where upstream does not look here
            return
        super()._load_best_model()

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes the manifest last; deletes old checkpoints only then, and by step (upstream: before, by date)."""
        states: Any = self.state.stateful_callbacks
        states[SUMS] = self.sums()
        with _rotation_left_to_us():
            super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # each has written its random state
        if self.args.should_save:
            folder = self._get_output_dir(trial=trial)
            newest = os.path.join(folder, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
            write_manifest(newest, self._settings)
            rotate(folder, self.args.save_total_limit, {newest, self.state.best_model_checkpoint})

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Amends the checkpoint of an epoch's last step by what is done after it, at the end of the epoch.

        A run that resumes from it begins with the next epoch: without, it would lack that evaluation (and the best
        model), and draw other random numbers. It is saved before, so that an interruption does not lose the epoch.
        """
        super()._run_epoch(*args, **kwargs)
        if self._epochs.is_saved_at_last_step:
            with explaining_a_full_disk(str(self.args.output_dir)):
                self._amend_checkpoint(kwargs.get("trial"))

    def _amend_checkpoint(self, trial: Any) -> None:
        folder = self._get_output_dir(trial=trial)
        newest = os.path.join(folder, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        best = os.path.join(folder, f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
        if self.state.best_global_step and os.path.isdir(best):
            self.state.best_model_checkpoint = best
        states: Any = self.state.stateful_callbacks
        states[SUMS] = self.sums()
        for callback in [*self.callback_handler.callbacks, self.control]:
            name = type(callback).__name__
            if isinstance(callback, ExportableState) and not isinstance(states.get(name), list):
                states[name] = callback.state()
        with amended(newest, self._settings, self.args.should_save, self.accelerator.wait_for_everyone) as draft:
            if not self.args.save_only_model:
                self._save_rng_state(draft)
                if isinstance(self.lr_scheduler, (ReduceLROnPlateau, GreedyLR)):  # which evaluations have moved
                    self._save_optimizer_and_scheduler(draft)
            if self.args.should_save:
                self.state.save_to_json(os.path.join(draft, TRAINER_STATE_NAME))
        if self.args.should_save:
            rotate(folder, self.args.save_total_limit, {newest, self.state.best_model_checkpoint})

    def _load_callback_state(self) -> None:
        """Upstream would warn that it does not know what our callbacks keep, and restore by themselves."""
        states: Any = self.state.stateful_callbacks
        own = {name: states.pop(name) for name in KEPT_BY_US if name in states}
        super()._load_callback_state()
        states.update(own)

    def sums(self) -> dict[str, Any]:
        """What a checkpoint keeps of the sums that run over the steps (of all processes, which all have to ask)."""
        loss = self.accelerator.gather(self._tr_loss.detach().reshape(1)).mean()
        return {
            "seconds": self.seconds_before + time.time() - self.began,
            "loss": loss.item(),
            "total_loss": self._total_loss_scalar,
            "last_logged": self._globalstep_last_logged,
        }

    def load_sums(self, kept: Mapping[str, Any]) -> None:
        """Goes on with them."""
        self._tr_loss = torch.tensor(kept["loss"], device=self.args.device)
        self._total_loss_scalar, self._globalstep_last_logged = kept["total_loss"], kept["last_logged"]
        self._initial_global_step = 0

    def _finalize_training(self, trial: Any, num_train_samples: Any, start_time: float) -> TrainOutput:
        """Counts the time before the checkpoint that was resumed, as `train_loss` does its steps."""
        return super()._finalize_training(trial, num_train_samples, start_time - self.seconds_before)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Replaces a model's files all at once, so that no crash leaves half of one."""
        folder = str(self.args.output_dir) if output_dir is None else output_dir
        if not self.args.should_save:  # upstream may need every process to gather what one of them writes
            super()._save(folder, state_dict)
            return
        model = self.accelerator.unwrap_model(self._plain_model, keep_torch_compile=False)
        is_checkpoint = os.path.basename(folder).startswith(PREFIX_CHECKPOINT_DIR)
        with replaced_at_once(folder) as draft, under_its_own_names(model) if is_checkpoint else nullcontext():
            with self._without_token():  # upstream pickles the arguments into training_args.bin
                super()._save(draft, state_dict)
            complete_adapter(self.accelerator.unwrap_model(self._plain_model), draft)
            is_elsewhere = os.path.abspath(folder) != os.path.abspath(str(self.args.output_dir))
            if is_elsewhere and not is_card_of_others(os.path.join(folder, "README.md")):
                create_model_card(self, checkpoint=folder).save(os.path.join(draft, "README.md"))

    @contextmanager
    def _without_token(self) -> Iterator[None]:
        token, self.args.hub_token = self.args.hub_token, None
        try:
            yield
        finally:
            self.args.hub_token = token

    # ---- the Hub ------------------------------------------------------------------------------------------------

    def _uploads(self, trained: bool = True) -> AbstractContextManager[None]:
        folder = str(self.args.output_dir)
        return uploads(self.args.hub_model_id or os.path.basename(folder), folder if trained else None)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Says in one sentence what is wrong when the Hub refuses; with `push_to_hub` that is before training."""
        with self._uploads(trained=False):
            super().init_hf_repo(token, private)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Uploads by the rules of `hf_dgl.hub` (no optimizer state, no paths of this machine)."""
        if self.hub_model_id is None:  # the Hub is asked first then: whatever it says, the model is on the disk
            self.save_model(_internal_call=True)
        with self._uploads():
            return super().push_to_hub(*args, **kwargs)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As `push_to_hub`; and adds to what upstream takes out of a checkpoint: our files, and a card."""
        is_busy = self.push_in_progress is not None and not self.push_in_progress.is_done()  # reading the folder
        if self.args.hub_strategy != HubStrategy.END and not is_busy and self.is_world_process_zero():
            copy_what_upstream_does_not(checkpoint_folder, str(self.args.output_dir))
            self.create_model_card()
        with self._uploads():
            super()._push_from_checkpoint(checkpoint_folder)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Writes our card in place of upstream's draft (which asks its reader to fill it in)."""
        if self.is_world_process_zero():
            folder = str(self.args.output_dir)
            os.makedirs(folder, exist_ok=True)
            if self.disentangled is not None:
                config = getattr(self.model, "config", None)
                modalities = list(self.disentangled.partition.modalities)
                problem_type, classes = getattr(config, "problem_type", None), getattr(config, "num_labels", None)
                save_pictures(folder, self.state.log_history, modalities, problem_type, classes)
                draw_model(inspect_model(self.disentangled), os.path.join(folder, MODEL_PICTURE))
            card = create_model_card(self, model_name, language=language, license=license, tags=tags, dataset=dataset)
            card.save(os.path.join(folder, "README.md"))


@contextmanager
def _rotation_left_to_us() -> Iterator[None]:
    """Inside, upstream deletes no checkpoints. It has no argument for when, and by what order, it does."""
    original = transformers.trainer.rotate_checkpoints
    transformers.trainer.rotate_checkpoints = lambda **_: None
    try:
        yield
    finally:
        transformers.trainer.rotate_checkpoints = original
