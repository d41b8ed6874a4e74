"""What the toolkit adds to saving, resuming and pushing, whatever is trained: the base class of `DGLTrainer`.

What it overrides, and why, stands in the first line of each method.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import nn
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy, TrainOutput, has_length

from hf_dgl.data.streaming import place_in_stream
from hf_dgl.hub.model_card import create_model_card
from hf_dgl.hub.uploads import copy_what_upstream_does_not, uploads
from hf_dgl.method.disentangle import Disentangled
from hf_dgl.models.adapters import complete_adapter
from hf_dgl.reports.curves import save_pictures
from hf_dgl.reports.model_picture import MODEL_PICTURE, draw_model
from hf_dgl.reports.model_tree import inspect_model

from .arguments import DGLTrainingArguments
from .checkpoints import explaining_a_full_disk, replaced_at_once, to_resume, under_its_own_names


class SavingTrainer(Trainer):
    """`transformers.Trainer` whose checkpoints are whole or not there, and whose uploads hold nothing private.

    Attributes:
        recipe: The recipe that is trained, for the card; `""` if there is none.
        disentangled: The handle of the model in training.
    """

    args: DGLTrainingArguments
    recipe: str = ""
    disentangled: Disentangled | None = None

    @property
    def _plain_model(self) -> nn.Module:
        assert self.model is not None
        return self.model

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Resumes from complete checkpoints only, and says what to do when the disk is full."""
        if resume_from_checkpoint:  # a folder, or True
            with self.args.main_process_first(local=self.args.save_on_each_node, desc="choosing the checkpoint"):
                resume_from_checkpoint = to_resume(resume_from_checkpoint, str(self.args.output_dir))
        with explaining_a_full_disk(str(self.args.output_dir)):
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Trains no step beyond `max_steps` when the checkpoint of the last one is resumed (upstream trains one)."""
        epochs_trained, steps_trained = super()._init_training_state(*args, **kwargs)
        checkpoint = args[3]
        if checkpoint is not None and not has_length(self.train_dataset) and not self.args.ignore_data_skip:
            place = place_in_stream(checkpoint, self.args.gradient_accumulation_steps)
            epochs_trained, steps_trained = place or (epochs_trained, steps_trained)
        done = self.state.global_step >= self.state.max_steps
        return (self.state.num_train_epochs if done else epochs_trained), steps_trained

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
            if os.path.abspath(folder) != os.path.abspath(str(self.args.output_dir)):
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
