"""What is worth knowing on a GPU, in one run of at most nine minutes; the same at tiny sizes on a CPU.

    python -m tests.gpu --out DIR                                 # on a GPU: sizes of ViT-B + BERT-base
    python -m tests.gpu --out DIR --device cpu --size tiny        # anywhere, in a minute

DIR/results.json has all figures, with device and versions; it is written after each part, so that a run that is
stopped keeps what it has. DIR/summary.md is the same as tables; DIR/device_tests.txt is the log of `pytest -m device`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .exactness import exactness, no_synchronisation
from .loops import loops
from .ratios import SIZES, ratios
from .summary import to_markdown

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets")


def about(device: str) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "CPU"
    return {"device": name, "threads": torch.get_num_threads(), **{name: version(name) for name in _PACKAGES}}


def device_tests(device: str, out: Path, seconds: float) -> dict[str, Any]:
    """`pytest -m device` in a process of its own."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "4", "-m", "device", "-p", "no:cacheprovider"]
    environment = {**os.environ, "HF_DGL_TEST_DEVICE": device}
    with open(out / "device_tests.txt", "w") as log:
        try:
            done = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, cwd=_ROOT, env=environment, timeout=seconds
            )
            code: int | None = done.returncode
        except subprocess.TimeoutExpired:
            code = None
    last = (out / "device_tests.txt").read_text().strip().splitlines()[-1:]
    return {"exit_code": code, "last_line": last}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=tuple(SIZES), default=None, help="default: base on a GPU, else tiny")
    parser.add_argument("--minutes", type=float, default=9.0, help="no part begins after this")
    parser.add_argument("--only", nargs="+", metavar="PART", help="exactness no_synchronisation ratios loops tests")
    arguments = parser.parse_args(argv)
    device, out = arguments.device, arguments.out
    size = arguments.size or ("base" if device.startswith("cuda") else "tiny")
    out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    left = lambda: arguments.minutes * 60 - (time.monotonic() - start)  # noqa: E731
    parts: dict[str, Callable[[], Any]] = {
        "exactness": lambda: exactness(device),
        "no_synchronisation": lambda: no_synchronisation(device),
        "ratios": lambda: ratios(device, size, left),
        "loops": lambda: loops(device, size),
        "tests": lambda: device_tests(device, out, max(left(), 1.0)),
    }
    results: dict[str, Any] = {"about": about(device), "size": size}
    failed = []
    for name, part in parts.items():
        if arguments.only and name not in arguments.only:
            continue
        began = time.monotonic()
        try:
            results[name] = part() if left() > 0 else {"left_out": "no time left"}
        except Exception:
            failed.append(name)
            results[name] = {"error": traceback.format_exc()[-2000:]}
        results.setdefault("seconds", {})[name] = round(time.monotonic() - began, 1)
        (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        (out / "summary.md").write_text(to_markdown(results))
        print(f"{name}: {results['seconds'][name]} s{' FAILED' if name in failed else ''}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
