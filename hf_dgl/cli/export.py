"""`hf-dgl export OUT --onnx model.onnx`."""

from __future__ import annotations

import argparse
from typing import Any


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Adds the command to `hf-dgl`."""
    parser = commands.add_parser(
        "export",
        parents=[common],
        allow_abbrev=False,
        help="write a fine-tuned model as ONNX",
        description="Write a fine-tuned model as one ONNX graph that takes any subset of the modalities, after "
        "comparing its answers with torch's. In Python: hf_dgl.inference.onnx.OnnxModel runs it. "
        "Needs ONNX: "
        'pip install -c constraints.txt -e ".[onnx]" in a checkout, pip install "hf-dgl[onnx]" elsewhere.',
    )
    parser.add_argument("model", metavar="OUT", help="the folder that `hf-dgl train` wrote, or a Hub id")
    parser.add_argument("--onnx", metavar="FILE", required=True, help="where to, e.g. model.onnx")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="largest difference of a logit; default: 0.001")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, rest: list[str]) -> None:
    """Prints what was compared and where the file is."""
    from hf_dgl.inference.load import pipeline
    from hf_dgl.inference.onnx import export_onnx

    if rest:
        raise ValueError(f"Did not understand {' '.join(rest)!r}. `hf-dgl export --help` lists what there is.")
    model = pipeline(arguments.model, device="cpu")
    checks = export_onnx(model, arguments.onnx, tolerance=arguments.tolerance)
    print("Largest difference of a logit between ONNX and torch:")
    for subset in dict.fromkeys(check.modalities for check in checks):
        of_subset = [check for check in checks if check.modalities == subset]
        sizes = ", ".join(str(check.batch_size) for check in of_subset)
        print(f"  {max(check.difference for check in of_subset):.1e}  {' + '.join(subset)} ({sizes} rows)")
    print(f"The graph is in {arguments.onnx}. In Python: hf_dgl.inference.onnx.OnnxModel({arguments.onnx!r})")
