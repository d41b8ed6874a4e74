"""What hf_dgl refuses to run under, and the launcher's files."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from accelerate import DistributedType
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from transformers import Trainer

from hf_dgl.training.parallelism import refuse_what_is_not_exact
from tests.training.test_trainer import make

CONFIGS = sorted(Path("recipes/accelerate").glob("*.yaml"))
TYPES = {
    "cpu": DistributedType.MULTI_GPU,  # which with `use_cpu` means the CPU
    "ddp": DistributedType.MULTI_GPU,
    "fsdp": DistributedType.FSDP,
    "deepspeed_zero2": DistributedType.DEEPSPEED,
    "deepspeed_zero3": DistributedType.DEEPSPEED,
}


def plugins(zero_stage: int | None = None, fsdp_version: int | None = None) -> Any:
    return SimpleNamespace(
        deepspeed_plugin=None if zero_stage is None else SimpleNamespace(zero_stage=zero_stage),
        fsdp_plugin=None if fsdp_version is None else SimpleNamespace(fsdp_version=fsdp_version),
    )


@pytest.mark.parametrize("zero_stage", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("fsdp_version", [None, 2])
def test_accepted(zero_stage: int | None, fsdp_version: int | None) -> None:
    refuse_what_is_not_exact(plugins(zero_stage, fsdp_version))


def fake_accelerator(monkeypatch: pytest.MonkeyPatch, state: Any) -> None:
    """The Trainer's accelerator claims these plugins (DeepSpeed is not installed here, and FSDP wants GPUs)."""

    def create(self: Trainer) -> None:
        original(self)
        self.is_deepspeed_enabled = state.deepspeed_plugin is not None
        real = self.accelerator.state
        self.accelerator = SimpleNamespace(state=state, unwrap_model=lambda model, **_: model, real=real)

    original = Trainer.create_accelerator_and_postprocess
    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", create)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (plugins(fsdp_version=1), r"does not run under FSDP version 1.*Set `fsdp_version: 2`"),
    ],
    ids=["fsdp1"],
)
@pytest.mark.parametrize("method", ["dgl", "joint"])
def test_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: Any, message: str, method: str) -> None:
    fake_accelerator(monkeypatch, state)
    with pytest.raises(ValueError, match=message):
        make(tmp_path, method=method)


@pytest.mark.parametrize(
    ("arguments", "warned"), [({}, True), ({"clip_by_group": False}, False), ({"max_grad_norm": 0.0}, False)]
)
def test_deepspeed_clips_by_itself(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    arguments: dict[str, Any],
    warned: bool,
) -> None:
    fake_accelerator(monkeypatch, plugins(zero_stage=2))
    monkeypatch.setattr("transformers.trainer.propagate_args_to_deepspeed", lambda *_: None)
    with caplog.at_level(logging.WARNING):
        make(tmp_path, **arguments)
    assert caplog.text.count("`clip_by_group` has no effect") == warned


def test_the_fsdp_of_our_recipe_is_accepted() -> None:
    config = yaml.safe_load(Path("recipes/accelerate/fsdp.yaml").read_text())["fsdp_config"]
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=config["fsdp_version"],
        reshard_after_forward=config["fsdp_reshard_after_forward"],
        state_dict_type=config["fsdp_state_dict_type"],
        auto_wrap_policy=config["fsdp_auto_wrap_policy"],
        cpu_ram_efficient_loading=config["fsdp_cpu_ram_efficient_loading"],
        cpu_offload=config["fsdp_offload_params"],
        activation_checkpointing=config["fsdp_activation_checkpointing"],
    )
    refuse_what_is_not_exact(SimpleNamespace(fsdp_plugin=plugin))


def test_there_is_a_file_for_each_way() -> None:
    assert {path.stem for path in CONFIGS} == set(TYPES)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_our_files(path: Path) -> None:
    """Its own loader refuses unknown keys on top; those in the blocks below must be options of `accelerate launch`."""
    text = path.read_text()
    assert text.startswith("# ") and f"--config_file {path}" in text
    config = load_config_from_file(str(path))
    assert config.distributed_type == TYPES[path.stem]
    parser = launch_command_parser()
    options = {action.dest for action in parser._actions}
    for block in ("fsdp_config", "deepspeed_config"):
        assert set(getattr(config, block)) <= options, block
    arguments = parser.parse_args(["--config_file", str(path), "-m", "hf_dgl", "train", "RECIPE"])
    arguments, _, _ = _validate_launch_command(arguments)
    assert arguments.num_processes == 2
    assert arguments.use_deepspeed == path.stem.startswith("deepspeed")
    assert arguments.use_fsdp == (path.stem == "fsdp")
    assert not arguments.use_fsdp or arguments.fsdp_version == 2
    if arguments.use_deepspeed:
        assert arguments.zero_stage == int(path.stem[-1])
