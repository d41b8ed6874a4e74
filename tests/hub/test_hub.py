"""To the Hub and back, by the real client and a real server (`server.py`): model, adapters, processor, card."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from PIL import Image

from tests.hub.conftest import ROOT, TOKEN, Client
from tests.hub.server import Hub
from tests.tiers import slow_but

CODE = set(
    "attention.py configuration_cross_modal.py encoders.py fusion.py modeling_cross_modal.py parts.py "
    "processing_cross_modal.py".split()
)
PROCESSOR = {
    "processor_config.json",
    "image/preprocessor_config.json",
    "text/tokenizer.json",
    "text/tokenizer_config.json",
}
MODEL = {"config.json", "model.safetensors", *CODE, *PROCESSOR}
BESIDE = {"README.md", "architecture.png", "metrics.json", "report.html", "training_curves.png", "gradient_norms.png"}
FORBIDDEN = (
    "*optimizer* *scheduler* *rng_state* *scaler* *training_args* *trainer_state* *.bin *.pt *.pth *.pkl runs/*"
)


def recipe(output_dir: Path, **values: Any) -> dict[str, Any]:
    return {"output_dir": str(output_dir), "eval_strategy": "steps", "eval_steps": 1, **values}


def assert_nothing_private(files: dict[str, bytes], *folders: Path) -> None:
    for path, content in files.items():
        assert not any(fnmatch(path, pattern) for pattern in FORBIDDEN.split()), path
        for secret in (TOKEN, str(ROOT), *map(str, folders)):
            assert secret.encode() not in content, f"{path} holds {secret}"


@pytest.fixture(scope="module")
def trained(client: Client, server: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of a run with `push_to_hub: true`."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    for name in ("runs/now_host/events.out", "notes.bin", "_draft/notes.txt"):  # what loggers and people leave there
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(str(folder))
    client(
        "train",
        recipe=recipe(
            folder, push_to_hub=True, hub_model_id="user/digits", save_strategy="steps", save_steps=1, hub_token=TOKEN
        )
        | {"hub_strategy": "end", "max_steps": 3},
    )
    return folder


def test_recipe_pushes_what_others_can_use_and_nothing_else(trained: Path, hub: Hub) -> None:
    files = hub.files("user/digits")
    assert set(files) == {".gitattributes", *MODEL, *BESIDE}
    assert_nothing_private(files, trained, trained.parent)
    assert files["model.safetensors"] == (trained / "model.safetensors").read_bytes()
    # These were there to be left out:
    assert (trained / "trainer_state.json").is_file() and (trained / "checkpoint-3" / "optimizer.pt").is_file()
    assert (trained / "training_args.bin").is_file() and TOKEN.encode() not in (
        trained / "training_args.bin"
    ).read_bytes()
    assert (
        str(trained).encode()
        in (trained / "trainer_state.json").read_bytes() + (trained / "training_args.bin").read_bytes()
    )


def test_list_and_download(trained: Path, hub: Hub, client: Client, tmp_path: Path) -> None:
    found = client("look", repo_id="user/digits", folder=str(tmp_path))
    assert found == {"listed": sorted(hub.files("user/digits")), "private": False}
    for name in MODEL | BESIDE:
        assert (tmp_path / name).read_bytes() == (trained / name).read_bytes(), name


@pytest.mark.parametrize("how", ["class", "auto", "load_model", "pipeline"])
def test_loaded_model_and_processor_are_the_same(trained: Path, client: Client, how: str) -> None:
    found = client("same", local=str(trained), repo_id="user/digits", how=how)
    assert found == {"inputs": True, "logits": True, "rows": 4}


def test_loads_without_our_package(trained: Path, client: Client, environment: dict[str, str], tmp_path: Path) -> None:
    client("expected", local=str(trained), path=str(tmp_path / "expected.pt"))
    script = Path(__file__).with_name("without_hf_dgl.py")
    ran = subprocess.run(
        [sys.executable, "-I", str(script), "user/digits", str(tmp_path / "expected.pt")],
        capture_output=True,
        text=True,
        env={**environment, "HF_HOME": str(tmp_path / "another_home")},
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found.pop("module").startswith("transformers_modules.user.digits.")
    assert found == {"inputs": True, "logits": True, "headless": True, "imported": []}


@pytest.mark.slow
def test_code_of_the_card_runs(
    trained: Path, hub: Hub, client: Client, environment: dict[str, str], tmp_path: Path
) -> None:
    """The first block with our package, the second where it cannot be imported."""
    card = ModelCard(hub.files("user/digits")["README.md"].decode())
    ours, without = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert '"user/digits"' in ours and '"user/digits", trust_remote_code=True' in without
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    assert "'modalities': {'image'" in client("run_code", code=ours, cwd=str(tmp_path))
    blocked = Path(__file__).with_name("without_hf_dgl.py").read_text().partition("import torch")[0]
    ran = subprocess.run(
        [sys.executable, "-I", "-c", blocked + without], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("{0: ") and "tensor([[" in ran.stdout


def test_card_on_the_hub(trained: Path, hub: Hub) -> None:
    files = hub.files("user/digits")
    card = ModelCard(files["README.md"].decode())
    assert card.data.eval_results is not None
    assert {entry.metric_value for entry in card.data.eval_results} >= {
        json.loads(files["metrics.json"])["test"][key] for key in ("accuracy", "accuracy_image", "accuracy_text")
    }
    for name in re.findall(r"\]\(([\w.]+)\)", card.text):  # pictures and report lie beside it
        assert name in files, name
    assert "(training_curves.png)" in card.text and "(report.html)" in card.text


@pytest.mark.parametrize("strategy", slow_but("checkpoint", of=["every_save", "checkpoint", "all_checkpoints"]))
def test_strategies(client: Client, hub: Hub, tmp_path: Path, strategy: str) -> None:
    """Uploads on the way hold a model, processor and card, never the state of the run; the last one is complete."""
    repo_id = f"user/{strategy}"
    client(
        "train",
        recipe=recipe(tmp_path / "out", push_to_hub=True, hub_model_id=repo_id, hub_strategy=strategy)
        | {"save_strategy": "steps", "save_steps": 1, "optim": "adamw_torch"},
    )
    repository = hub.repositories[repo_id]
    messages = [message for _, message in repository.messages]
    assert "Training in progress, step 1" in messages and messages[-1] == "Model save"
    folder = {"every_save": None, "checkpoint": "last-checkpoint", "all_checkpoints": "checkpoint-1"}[strategy]
    in_checkpoint = {f"{folder}/{name}" for name in {*MODEL, "README.md"}} if folder else set()
    # The Trainer leaves out a checkpoint that is saved while the one before is still on its way.
    files = {path for path in hub.files(repo_id) if not path.startswith("checkpoint-2/")}
    assert files == {".gitattributes", *MODEL, *BESIDE, *in_checkpoint}
    for tree in repository.commits.values():  # every state that anybody could have downloaded
        assert_nothing_private(tree, tmp_path)
        if "model.safetensors" in tree:
            assert set(tree) >= MODEL | {"README.md", "training_curves.png"}
    if folder:
        assert b"**A checkpoint**" in hub.files(repo_id)[f"{folder}/README.md"]


def test_trainer_pushes_to_a_branch(client: Client, hub: Hub, tmp_path: Path) -> None:
    """`trainer.push_to_hub(revision=...)` without `push_to_hub: true`; the branch is made."""
    values = recipe(tmp_path / "out", hub_model_id="user/branched")
    client("train", recipe=values, then_push={"revision": "second", "commit_message": "by hand"})
    assert hub.repositories["user/branched"].messages[-1] == ("second", "by hand")
    assert set(hub.files("user/branched")) == {".gitattributes"}
    assert {*MODEL, "README.md"} <= set(hub.files("user/branched", "second"))
    found = client("same", local=str(tmp_path / "out"), repo_id="user/branched", revision="second")
    assert found["logits"] and found["inputs"]


@pytest.mark.slow
def test_recipe_may_name_a_branch(client: Client, hub: Hub, tmp_path: Path) -> None:
    values = recipe(tmp_path / "out", push_to_hub=True, hub_model_id="user/branches", hub_revision="v2")
    client("train", recipe=values)
    assert set(hub.files("user/branches")) == {".gitattributes"}
    assert '("user/branches", revision="v2")' in hub.files("user/branches", "v2")["README.md"].decode()
    assert client("same", local=str(tmp_path / "out"), repo_id="user/branches", revision="v2")["logits"]


@pytest.mark.slow
def test_push_command_and_revisions(trained: Path, client: Client, hub: Hub, tmp_path: Path) -> None:
    """Two versions of a model in two branches, each of which loads as itself."""
    other = tmp_path / "other"
    client("train", recipe=recipe(other, seed=7))
    said = client("cli", words=["push", str(trained), "user/two", "--private"])
    assert (said["code"], said["out"]) == (0, f"{hub.url}/user/two\n"), said["err"]
    said = client("cli", words=["push", str(other), "user/two", "--revision", "seed-7"])
    assert (said["code"], said["out"]) == (0, f"{hub.url}/user/two/tree/seed-7\n"), said["err"]
    assert hub.repositories["user/two"].private
    assert set(hub.repositories["user/two"].branches) == {"main", "seed-7"}
    assert 'from_pretrained("user/two")' in hub.files("user/two")["README.md"].decode()
    card = hub.files("user/two", "seed-7")["README.md"].decode()
    assert card.count('("user/two", revision="seed-7"') == 3 and '("user/two")' not in card
    for folder, revision, same in [(trained, "main", True), (other, "seed-7", True), (other, "main", False)]:
        found = client("same", local=str(folder), repo_id="user/two", how="auto", revision=revision)
        assert found["logits"] == same
    for revision in ("main", "seed-7"):
        assert_nothing_private(hub.files("user/two", revision), trained.parent, tmp_path)


def test_a_space_that_shows_the_model(trained: Path, client: Client, hub: Hub) -> None:
    said = client("cli", words=["push", str(trained), "user/shown", "--space"])
    assert (said["code"], said["out"]) == (0, f"{hub.url}/user/shown\n{hub.url}/spaces/user/shown-demo\n"), said["err"]
    files = {name: content.decode() for name, content in hub.files("user/shown-demo.space").items()}
    assert set(files) == {".gitattributes", "app.py", "requirements.txt", "README.md"}
    assert "build('user/shown')" in files["app.py"] and "sdk: gradio" in files["README.md"]


def test_adapters(client: Client, hub: Hub, trained: Path, tmp_path: Path) -> None:
    """Adapters of a model on the Hub: a small repository, from which the whole is built again."""
    values = {
        "encoders": None,
        "model_name_or_path": "user/digits",
        "peft": {"r": 2, "lora_alpha": 4, "modules": "all"},
        "peft_merge": False,
        "push_to_hub": True,
        "hub_model_id": "user/adapters",
    }
    client("train", recipe=recipe(tmp_path / "lora", **values))
    files = hub.files("user/adapters")
    assert {"adapter_config.json", "adapter_model.safetensors", "base.json", "README.md", *PROCESSOR} <= set(files)
    assert "model.safetensors" not in files
    assert json.loads(files["base.json"])["model_name_or_path"] == "user/digits"
    assert_nothing_private(files, tmp_path)
    card = files["README.md"].decode()
    assert "LoRA adapters" in card and "trust_remote_code" not in card
    for how in ("load_model", "pipeline", "class", "auto"):
        assert client("same", local=str(tmp_path / "lora"), repo_id="user/adapters", how=how) == {
            "inputs": True,
            "logits": True,
            "rows": 4,
        }


@pytest.mark.slow
def test_adapters_of_a_local_model_are_refused(client: Client, hub: Hub, trained: Path, tmp_path: Path) -> None:
    values = {"encoders": None, "model_name_or_path": str(trained), "peft": {"r": 2}}
    client("train", recipe=recipe(tmp_path / "lora", **values))
    said = client("cli", words=["push", str(tmp_path / "lora" / "adapter"), "user/local-base"])
    assert said["code"] == 2 and "a folder of this machine" in said["err"] and "peft_merge" in said["err"]
    assert set(hub.files("user/local-base")) == {".gitattributes"}
    said = client("cli", words=["push", str(tmp_path / "lora"), "user/merged"])  # the merged one is whole
    assert said["code"] == 0
    assert set(hub.files("user/merged")) == {".gitattributes", *MODEL, *BESIDE}
    assert_nothing_private(hub.files("user/merged"), tmp_path, trained)
    assert client("same", local=str(tmp_path / "lora"), repo_id="user/merged")["logits"]


def test_a_second_push_uploads_only_what_changed(trained: Path, client: Client, hub: Hub) -> None:
    words = ["push", str(trained), "user/again"]
    assert client("cli", words=words)["code"] == 0
    hub.requests.clear()
    assert client("cli", words=words)["code"] == 0
    assert not [path for method, path in hub.requests if method == "PUT"]
    assert len(hub.repositories["user/again"].messages) == 2  # the first commit and one upload


def test_checkpoint_folder_can_be_pushed(trained: Path, client: Client, hub: Hub) -> None:
    folder = trained / "checkpoint-3"
    assert client("cli", words=["push", str(folder), "user/checkpoint-3"])["code"] == 0
    files = hub.files("user/checkpoint-3")
    assert set(files) == {".gitattributes", "README.md", *MODEL}
    assert os.fsencode(trained) not in b"".join(files.values())
    assert client("same", local=str(folder), repo_id="user/checkpoint-3")["logits"]
