"""Run by two gloo processes (`torchrun`): DGL's steps under DeepSpeed ZeRO, against one process on all rows.

usage: DS_ACCELERATOR=cpu torchrun --nproc_per_node 2 -m tests.distributed.zero FOLDER STAGE:METHOD:MODEL[+no_sync] ...

Stage 3 keeps every parameter partitioned (`stage3_param_persistence_threshold: 0`), however small. `trainer` in place
of a model: `DGLTrainer`, uninterrupted and resumed.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from torch.utils.data import default_collate

from hf_dgl import DGLTrainer, DGLTrainingArguments, disentangle
from tests.distributed.gradients import ROWS, build, compare, rows_of, three_steps
from tests.method.test_disentangle import settings


def sharding(stage: int) -> dict[str, Any]:
    return {
        "stage": stage,
        "stage3_param_persistence_threshold": 0,
        "stage3_max_live_parameters": 0,
        "stage3_gather_16bit_weights_on_model_save": True,
    }


def configuration(stage: int, accumulate: int) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": ROWS // 2 // accumulate,
        "gradient_accumulation_steps": accumulate,
        "optimizer": {"type": "SGD", "params": {"lr": 0.1}},
        "zero_optimization": sharding(stage),
        "gradient_clipping": 0.0,  # its default is one global norm of 1
        "zero_allow_untested_optimizer": True,
    }


def whole(model: Any) -> dict[str, torch.Tensor]:
    """Every parameter, gathered."""
    named = {}
    for name, parameter in model.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            named[name] = parameter.detach().clone()
    return named


def run(stage: int, method: str, name: str) -> None:
    accumulate = 2 if name.endswith("+no_sync") else 1
    model, modalities, batch = build(name.removesuffix("+no_sync"))
    reference = copy.deepcopy(model)
    with disentangle(reference, modalities, **settings(method)):
        _, expected = three_steps(reference, [batch])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    engine, *_ = deepspeed.initialize(model=model, model_parameters=trained, config=configuration(stage, accumulate))
    with disentangle(engine.module, modalities, **settings(method)):
        size = ROWS // 2 // accumulate
        for _ in range(3):
            for index in range(accumulate):
                start = dist.get_rank() * ROWS // 2 + index * size
                engine.backward(engine(**rows_of(batch, slice(start, start + size)))["loss"])
                engine.step()
    compare("weights after three steps", whole(engine.module), expected)


def run_trainer(stage: int, method: str, folder: Path) -> None:
    """Every step sees all rows, so that their order does not matter."""
    model, modalities, batch = build("cross_attention")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    reference = copy.deepcopy(model)
    with disentangle(reference, modalities, **settings(method, alpha=1.0)):
        _, expected = three_steps(reference, [batch])
    rows = [rows_of(batch, index) for index in range(ROWS)]
    for resumed in (False, True):
        arguments = DGLTrainingArguments(
            str(folder / f"{stage}-{method}"),
            deepspeed={
                "zero_optimization": sharding(stage),
                "train_micro_batch_size_per_gpu": "auto",
                "gradient_accumulation_steps": "auto",
                "gradient_clipping": "auto",
            },
            method=method,
            use_cpu=True,
            per_device_train_batch_size=ROWS // 4,
            gradient_accumulation_steps=2,
            max_steps=3,
            save_strategy="steps",
            save_steps=2,
            optim="sgd",
            learning_rate=0.1,
            lr_scheduler_type="constant",
            clip_by_group=False,
            max_grad_norm=0.0,
            report_to=[],
            disable_tqdm=True,
        )
        trainer = DGLTrainer(copy.deepcopy(model), arguments, train_dataset=rows, data_collator=default_collate)
        checkpoint = f"{arguments.output_dir}/checkpoint-2"
        trainer.train(resume_from_checkpoint=checkpoint if resumed else None)
        compare("weights after a resume" if resumed else "weights", whole(trainer.model), expected)


def main(folder: str, *cases: str) -> None:
    deepspeed.init_distributed("gloo")
    torch.set_num_threads(1)
    for case in cases:
        stage, method, name = case.split(":")
        if name == "trainer":
            run_trainer(int(stage), method, Path(folder))
        else:
            run(int(stage), method, name)
        dist.barrier()
        if dist.get_rank() == 0:
            print(f"EQUAL {case}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
