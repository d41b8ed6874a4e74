"""Run by two gloo processes (`torchrun`): DGL's steps under DeepSpeed ZeRO, against one process on all rows.

usage: DS_ACCELERATOR=cpu torchrun --nproc_per_node 2 -m tests.distributed.zero STAGE:METHOD:MODEL[+no_sync] ...

`STAGE` 3 keeps every parameter partitioned (`stage3_param_persistence_threshold: 0`), however small.
"""

from __future__ import annotations

import copy
import sys
import traceback

import deepspeed
import torch
import torch.distributed as dist

from hf_dgl.architectures import disentangle
from tests.method.test_disentangle import settings

from .gradients import ROWS, build, compare, rows_of, three_steps


def configuration(stage: int, accumulate: int) -> dict:
    sharded = {"stage": stage, "stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 0}
    return {
        "train_micro_batch_size_per_gpu": ROWS // 2 // accumulate,
        "gradient_accumulation_steps": accumulate,
        "optimizer": {"type": "SGD", "params": {"lr": 0.5}},
        "zero_optimization": sharded,
        "gradient_clipping": 0.0,  # its default is one global norm of 1
        "zero_allow_untested_optimizer": True,
    }


def whole(model) -> dict[str, torch.Tensor]:
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


def main(cases: list[str]) -> None:
    deepspeed.init_distributed("gloo")
    torch.set_num_threads(1)
    for case in cases:
        stage, method, name = case.split(":")
        try:
            run(int(stage), method, name)
            said = "EQUAL"
        except Exception as error:
            said = f"DIFFERS {type(error).__name__}: {str(error).splitlines()[0][:300]}"
            if "-v" in sys.argv:
                traceback.print_exc()
        if dist.get_rank() == 0:
            print(f"{said} {case}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main([word for word in sys.argv[1:] if word != "-v"])
