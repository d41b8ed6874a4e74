"""The README's commands and its first Python, in their order and in one folder: from a wheel, and from a clean clone.

Runs are shortened, and an encoder of the first model stands in for the two of the Hub. Not run: the test suite itself.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.pages import ROOT, blocks, commands

SHORT = "--max_steps 2 --max_train_samples 64 --max_eval_samples 32 --eval_strategy no --save_strategy no".split()
SHORT += ["--load_best_model_at_end", "false", "--use_cpu"]
HUB = {"google/vit-base-patch16-224": "outputs/image_text", "FacebookAI/roberta-base": "outputs/image_text"}
RUNNER = """
import json, pathlib, sys
import hf_dgl
from hf_dgl.cli import main
assert pathlib.Path(hf_dgl.__file__).is_relative_to(sys.argv[1]), hf_dgl.__file__
for step in json.load(sys.stdin):
    if isinstance(step, str):
        exec(step, {})
    else:
        print("$ hf-dgl", *step, flush=True)
        assert main(step) == 0, step
"""
pytestmark = pytest.mark.slow


def steps() -> list[Any]:
    """What the README says to type, shortened; its first Python where it stands, as text."""
    found: list[Any] = []
    for words in commands():
        words = [_stand_ins(word) for word in words]
        if "my.csv" in words and words[0] == "data":
            python = _stand_ins(blocks("python")[0])
            found.append(python.replace("encoders=encoders)", "encoders=encoders, max_steps=2)"))
        if "--seeds" in words:
            del words[words.index("--seeds") + 2 : words.index("--seeds") + 4]  # one seed
        if words[0] in ("train", "diagnose", "compare"):
            words += SHORT
        found.append(words)
    return found


def _stand_ins(text: str) -> str:
    for name, here in HUB.items():
        text = text.replace(name, here)
    return text


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean") / "clone"
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    return folder


def fresh_environment(folder: Path, *install: str | Path) -> Path:
    """A virtual environment with what is installed, and this one's packages in place of downloads of dependencies."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    python = folder / "bin" / "python"
    asked = [python, "-c", "import site; print(site.getsitepackages()[0])"]
    site = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    Path(site, "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *install], check=True, env=environment())
    return python


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "GRADIO_ANALYTICS_ENABLED": "False"}


def users_files(folder: Path) -> None:
    """`my.csv` with its photos, and `photo.png`."""
    draw = np.random.default_rng(0)
    lines = ["photo,title,kind"]
    for index in range(40):
        Image.fromarray(draw.integers(0, 255, (8, 8, 3), np.uint8)).save(folder / f"{index}.png")
        lines.append(f"{index}.png,number {index},{'cat' if index % 2 else 'dog'}")
    (folder / "my.csv").write_text("\n".join(lines))
    shutil.copy(folder / "0.png", folder / "photo.png")


def run(python: Path, folder: Path, todo: list[Any], package: Path) -> str:
    done = subprocess.run(
        [python, "-c", RUNNER, package],
        input=json.dumps(todo),
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(),
        timeout=580,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_from_the_wheel_outside_the_checkout(clone: Path, tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path, clone]
    subprocess.run(build, check=True, env=environment())
    (wheel,) = tmp_path.glob("*.whl")
    python = fresh_environment(tmp_path / "venv", wheel)
    folder = tmp_path / "home"
    folder.mkdir()
    users_files(folder)
    todo = steps()
    assert [step[0] for step in todo if not isinstance(step, str)] == [
        *("train", "data", "predict", "predict", "evaluate", "demo", "train"),
        *("data", "train", "recipes", "recipes", "inspect", "train", "diagnose", "compare"),
    ]
    printed = run(python, folder, [step for step in todo if step[0] != "demo"], tmp_path / "venv")
    assert "image alone" in printed and '"modalities"' in printed and "Method: " in printed
    for made in ("outputs/joint", "outputs/shop", "outputs/my", "outputs/mine"):
        assert (folder / made / "model.safetensors").is_file()
    for made in ("diagnosis/diagnosis.png", "comparison/comparison.md", "image_text/report.html"):
        assert (folder / "outputs" / made).is_file()
    assert (folder / "data.png").is_file() and (folder / "digits" / "1-image.png").is_file()
    the_demo_is_served_until_it_is_stopped(python.with_name("hf-dgl"), folder)


def the_demo_is_served_until_it_is_stopped(script: Path, folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (words,) = [words for words in commands() if words[0] == "demo"]
    # Where the tests run in the background of a shell, SIGINT is ignored, and what they start would inherit that.
    reset = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    command = [script, *words, "--port", str(port)]
    process = subprocess.Popen(command, cwd=folder, env=environment(), preexec_fn=reset)
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                page = urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5).read().decode()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.5)
        assert "image_text" in page
        process.send_signal(signal.SIGINT)
        assert process.wait(120) in (0, 130)
    finally:
        process.kill()


def test_from_a_clean_clone(clone: Path, tmp_path: Path) -> None:
    """The first command, and the next ones, in the folder of the clone as printed."""
    python = fresh_environment(tmp_path / "venv", "-c", clone / "constraints.txt", "-e", clone)
    first = [step for step in steps() if not isinstance(step, str)][:5]
    printed = run(python, clone, first, clone)
    assert "image alone" in printed and '"accuracy_image"' in printed
