"""The package as a newcomer meets it: what an import costs, what it knows, which version it says it is."""

from __future__ import annotations

import email
import re
import resource
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import hf_dgl

ROOT = Path(__file__).parents[1]


def in_an_interpreter(*words: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """A Python process of its own, and the CPU seconds that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=ROOT, timeout=200)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


# ---- an import that costs nothing ----


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--help"], 0, "hf-dgl train quickstart/image_text"),
        (["--version"], 0, f"hf-dgl {hf_dgl.__version__}"),
        (["trian"], 2, "did you mean 'train'?"),
    ],
    ids=["help", "version", "mistyped"],
)
def test_asking_costs_half_a_second_at_most(words, code, told):
    done, seconds = in_an_interpreter("-m", "hf_dgl", *words)
    assert done.returncode == code
    assert told in done.stdout + done.stderr and seconds <= 0.5


def test_the_import_loads_no_library():
    script = "import sys, hf_dgl; print(sorted({'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)))"
    done, seconds = in_an_interpreter("-c", script)
    assert done.stdout.strip() == "[]" and seconds <= 0.5


def test_every_public_name_is_there():
    assert set(dir(hf_dgl)) == set(hf_dgl.__all__)
    assert all(getattr(hf_dgl, name).__module__.startswith("hf_dgl.") for name in hf_dgl.__all__)
    with pytest.raises(AttributeError, match="DGLTrainr"):
        hf_dgl.DGLTrainr  # noqa: B018


# ---- the Auto classes know our model, whichever is imported first ----

IMPORTS = {
    "hf_dgl first": "import hf_dgl; import transformers",
    "transformers first": "import transformers; transformers.AutoConfig; import hf_dgl",
    "midway: a name of transformers, then hf_dgl": "import transformers; transformers.BertConfig; import hf_dgl",
    "hf_dgl, then a name that needs the Auto classes": (
        "import hf_dgl; from transformers import AutoModel; import transformers"
    ),
    "hf_dgl, then the module of the Auto classes itself": (
        "import hf_dgl; import transformers.models.auto.modeling_auto; import transformers"
    ),
    "hf_dgl loaded twice": "import hf_dgl, importlib; importlib.reload(hf_dgl); import transformers",
}


@pytest.mark.parametrize(
    "order", [name if name == "hf_dgl first" else pytest.param(name, marks=pytest.mark.slow) for name in IMPORTS]
)
def test_a_saved_model_loads_without_trusting_its_code(order, tmp_path):
    from tests.tiny import tiny_model, tiny_processor

    tiny_model().save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    load = "; ".join(
        f"print(type(transformers.{auto}.from_pretrained({str(tmp_path)!r})).__module__)"
        for auto in ("AutoConfig", "AutoModelForSequenceClassification", "AutoProcessor")
    )
    done, _ = in_an_interpreter("-c", f"{IMPORTS[order]}; {load}")
    modules = done.stdout.split()
    assert [name.rpartition(".")[0] for name in modules] == ["hf_dgl.models"] * 3, done.stderr[-2000:]


@pytest.mark.slow
def test_a_script_that_imports_the_trainer_is_told_nothing():
    """Upstream logs "Error importing huggingface_hub.repocard" if `datasets` is imported within the Trainer."""
    done, _ = in_an_interpreter("-c", "from hf_dgl import DGLTrainer")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---- one version ----


def test_the_installed_version_is_the_one_in_the_code():
    assert metadata.version("hf-dgl") == hf_dgl.__version__


def test_what_is_cited_and_what_changed_are_of_this_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == hf_dgl.__version__
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None and newest.group(1) == hf_dgl.__version__


@pytest.mark.slow
def test_the_wheel_says_the_same_version_and_carries_what_is_no_code(tmp_path):
    pytest.importorskip("setuptools", minversion="77")
    source = tmp_path / "source"  # building in place would leave its files there
    for folder in ("hf_dgl", "recipes"):
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(tmp_path)]
    done, _ = in_an_interpreter(*command, str(source))
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("hf_dgl-*.whl")
    with zipfile.ZipFile(wheel) as files:
        names = set(files.namelist())
        (stated,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        stated_version = email.message_from_bytes(files.read(stated))["Version"]
    assert wheel.name.split("-")[1] == stated_version == hf_dgl.__version__
    for path in (ROOT / "hf_dgl").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert str(path.relative_to(ROOT)) in names


# ---- for those who carry on ----


def test_the_workflows_run_what_anybody_runs():
    for workflow in (ROOT / ".github" / "workflows").glob("*.yml"):
        (job,) = yaml.safe_load(workflow.read_text())["jobs"].values()
        assert ".ci/run" in [step.get("run") for step in job["steps"]], workflow.name


def test_contributing_names_what_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    wings = {path.name for path in (ROOT / "hf_dgl").iterdir() if (path / "__init__.py").is_file()}
    named = set(re.findall(r"`(\w+)/`", text))
    assert wings <= named
    for path in re.findall(r"`((?:hf_dgl|tests|\.github)/[\w./]+)`", text):
        assert (ROOT / path).exists(), path
