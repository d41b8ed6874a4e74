"""When the Hub refuses or breaks down: one sentence with what to type, and nothing that was trained is lost."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.hub.conftest import EXPIRED_TOKEN, READ_TOKEN, TOKEN, Client
from tests.hub.server import Hub, Repository
from tests.recipes import tiny_recipe


@pytest.fixture(scope="module")
def trained(client: Client, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "digits"
    client("train", recipe={"output_dir": str(folder)})
    return folder


def push(client: Client, folder: Path, repo_id: str, *words: str, **env: str) -> str:
    """What `hf-dgl push` prints when it fails: one message, without the words of huggingface_hub."""
    said = client("cli", words=["push", str(folder), repo_id, *words], env=env)
    assert said["code"] == 2 and said["out"] == ""
    messages = [line for line in said["err"].splitlines() if line.startswith("hf-dgl push: ")]
    assert len(messages) == 1 and said["err"].rstrip().endswith(messages[0]), said["err"]
    for noise in ("Traceback", "Client Error", "Request ID", TOKEN, EXPIRED_TOKEN):
        assert noise not in said["err"]
    return messages[0]


def assert_says_where_and_how(message: str, folder: Path, repo_id: str) -> None:
    assert f"The model is complete in {folder}." in message
    assert message.endswith(f"type: hf-dgl push {folder} {repo_id}")


def test_expired_token(trained: Path, client: Client) -> None:
    message = push(client, trained, "user/x", HF_TOKEN=EXPIRED_TOKEN)
    assert "does not accept your token" in message and "hf auth login" in message
    assert_says_where_and_how(message, trained, "user/x")


def test_no_token(trained: Path, client: Client) -> None:
    message = push(client, trained, "user/x", HF_TOKEN="")
    assert "hf auth login" in message and "may write" in message


@pytest.mark.parametrize(("repo_id", "token"), [("somebody/x", TOKEN), ("user/x", READ_TOKEN)])
def test_no_right_to_write(trained: Path, client: Client, repo_id: str, token: str) -> None:
    message = push(client, trained, repo_id, HF_TOKEN=token)
    assert f"may not write to {repo_id}" in message and "hf auth whoami" in message
    assert_says_where_and_how(message, trained, repo_id)


def test_conflict(trained: Path, client: Client, hub: Hub) -> None:
    """Somebody else commits at the same time; and a name that a repository of another kind has."""
    hub.fail("POST", "/commit/", 409, "The branch has moved")
    message = push(client, trained, "user/conflict")
    assert "user/conflict is in conflict (409 The branch has moved)" in message and "choose another name" in message
    assert_says_where_and_how(message, trained, "user/conflict")


def test_name_that_cannot_be_one(trained: Path, client: Client) -> None:
    assert "expected user/name" in push(client, trained, "a/b/c")


@pytest.mark.parametrize("status", [503, 0], ids=["503", "connection cut"])
def test_the_hub_breaks_down_for_a_moment(trained: Path, client: Client, hub: Hub, status: int) -> None:
    """huggingface_hub tries again by itself."""
    hub.large_files.clear()
    hub.fail("PUT", "/upload/", status, times=2)
    said = client("cli", words=["push", str(trained), f"user/moment-{status}"])
    assert said["code"] == 0, said["err"]
    assert hub.files(f"user/moment-{status}")["model.safetensors"] == (trained / "model.safetensors").read_bytes()


@pytest.mark.parametrize("status", [503, 0], ids=["503", "connection cut"])
def test_the_hub_breaks_down_in_mid_upload(trained: Path, client: Client, hub: Hub, status: int) -> None:
    repo_id = f"user/down-{status}"
    hub.large_files.clear()
    hub.fail("PUT", "/upload/", status, "busy")
    message = push(client, trained, repo_id)
    assert ("The Hub is not well (503 busy)" if status else "cannot be reached") in message
    assert_says_where_and_how(message, trained, repo_id)
    assert set(hub.files(repo_id)) == {".gitattributes"}  # no half of a model
    hub.failures.clear()
    command = re.findall(r"type: hf-dgl (.*)$", message)[0].split()  # what the message says is what helps
    assert client("cli", words=command)["code"] == 0
    assert client("same", local=str(trained), repo_id=repo_id)["logits"]


@pytest.mark.slow
def test_xet(trained: Path, client: Client, hub: Hub) -> None:
    """The protocol that hf_xet speaks is not ours to serve; what it is given, and how it fails, can be seen."""
    hub.announced.clear()
    words = ["push", str(trained), "user/xet"]
    said = client("cli", words=words, constants={"HF_HUB_DISABLE_XET": False})
    assert said["code"] == 2 and ("GET", "/api/models/user/xet/xet-write-token/main") in hub.requests
    assert "hf-dgl push: The Hub (http://127.0.0.1" in said["err"] and "cannot be reached, or broke off" in said["err"]
    assert_says_where_and_how(said["err"].rstrip(), trained, "user/xet")
    assert "model.safetensors" in hub.announced
    assert not hub.announced & {"training_args.bin", "trainer_state.json", "recipe.yaml"}


def test_no_network(trained: Path, client: Client, hub: Hub) -> None:
    hub.fail("POST", "/api/repos/create", 0)
    assert "cannot be reached" in push(client, trained, "user/x")


def test_private_is_not_put_into_a_public_repository(trained: Path, client: Client, hub: Hub) -> None:
    hub.repositories["user/public"] = Repository()
    hub.repositories["user/public"].commit("main", "initial commit", {})
    message = push(client, trained, "user/public", "--private")
    assert "user/public exists and is public" in message and hub.files("user/public") == {}


def test_a_token_in_a_file_is_not_uploaded(trained: Path, client: Client, hub: Hub) -> None:
    notes = trained / "notes.md"
    notes.write_text(f"my token is {EXPIRED_TOKEN}")
    try:
        message = push(client, trained, "user/secret")
    finally:
        notes.unlink()
    assert "notes.md holds an access token" in message and "revoke" in message
    assert set(hub.files("user/secret")) == {".gitattributes"}


def test_folder_without_a_model(client: Client, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    assert "['notes.txt']; expected a folder with a model" in push(client, tmp_path, "user/x")


# ---- training that pushes ---------------------------------------------------------------------------------------


def train(client: Client, folder: Path, env: dict[str, str] | None = None, **values: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    recipe = folder / "r.yaml"
    recipe.write_text(yaml.safe_dump(tiny_recipe(folder / "out", push_to_hub=True, **values)))
    return client("cli", words=["train", str(recipe)], env=env or {})


def test_expired_token_is_told_before_training(client: Client, tmp_path: Path) -> None:
    said = train(client, tmp_path, {"HF_TOKEN": EXPIRED_TOKEN}, hub_model_id="user/early")
    assert said["code"] == 2
    assert "does not accept your token for user/early" in said["err"] and "Nothing was trained yet" in said["err"]
    assert "'loss'" not in said["out"] and not (tmp_path / "out" / "config.json").exists()


@pytest.mark.parametrize(
    ("pattern", "status", "words"),
    [
        ("/preupload/", 401, "does not accept your token"),  # it expired while the model was trained
        pytest.param("/commit/", 403, "may not write", marks=pytest.mark.slow),
        pytest.param("/upload/", 500, "not well", marks=pytest.mark.slow),
    ],
)
def test_a_failing_push_at_the_end_loses_nothing(
    client: Client, hub: Hub, tmp_path: Path, pattern: str, status: int, words: str
) -> None:
    repo_id = f"user/end-{status}"
    hub.large_files.clear()
    for method in ("PUT", "POST"):
        hub.fail(method, pattern, status, "no")
    said = train(client, tmp_path, hub_model_id=repo_id)
    out = tmp_path / "out"
    assert said["code"] == 2 and words in said["err"] and "Traceback" not in said["err"]
    assert said["err"].rstrip().endswith(f"type: hf-dgl push {out} {repo_id}")
    for name in ("config.json", "model.safetensors", "metrics.json", "recipe.yaml", "README.md", "report.html"):
        assert (out / name).is_file(), name
    assert json.loads((out / "metrics.json").read_text())["test"]["accuracy"] >= 0
    hub.failures.clear()
    assert client("cli", words=["push", str(out), repo_id])["code"] == 0
    assert client("same", local=str(out), repo_id=repo_id) == {"inputs": True, "logits": True, "rows": 4}


@pytest.mark.slow
def test_a_failing_push_on_the_way_is_a_warning(client: Client, hub: Hub, tmp_path: Path) -> None:
    hub.fail("POST", "/commit/", 500, "busy", times=1)
    said = train(
        client, tmp_path, hub_model_id="user/way", hub_strategy="every_save", save_strategy="steps", save_steps=1
    )
    assert said["code"] == 0, said["err"]
    assert "An upload during training failed. The Hub is not well (500 busy)" in said["err"]
    assert client("same", local=str(tmp_path / "out"), repo_id="user/way")["logits"]


# ---- strange answers, strange tokens, strange files ---------------------------------------------------------------


def test_a_lost_answer_is_looked_for(trained: Path, client: Client, hub: Hub) -> None:
    """The commit is made, and the connection breaks before the Hub says so: that is no failure."""
    hub.fail("POST", "/commit/", -1)
    said = client("cli", words=["push", str(trained), "user/lost"])
    assert (said["code"], said["out"]) == (0, f"{hub.url}/user/lost\n"), said["err"]
    assert "The Hub's answer was lost, but all" in said["err"] and "files are in user/lost" in said["err"]
    assert hub.files("user/lost")["model.safetensors"] == (trained / "model.safetensors").read_bytes()


def test_a_lost_commit_is_looked_for(trained: Path, client: Client, hub: Hub) -> None:
    hub.fail("POST", "/commit/", 504, "no answer")
    message = push(client, trained, "user/lost-commit")
    assert re.search(r"not well \(504 no answer\); \S+ of this upload is not in user/lost-commit\.", message)
    hub.fail("GET", "/tree/", 503, "no")
    message = push(client, trained, "user/lost-commit")
    assert f"whether it arrived cannot be seen from here: look at {hub.url}/user/lost-commit" in message


def test_too_many_requests_are_waited_out(trained: Path, client: Client, hub: Hub) -> None:
    hub.fail("POST", "/commit/", 429, "slow down", times=2, Retry_After="7")
    said = client("cli", words=["push", str(trained), "user/patient"])
    assert said["code"] == 0 and "(429): trying again in 7 seconds" in said["err"], said["err"]
    hub.fail("POST", "/commit/", 429, "slow down", Retry_After="100000")
    message = push(client, trained, "user/impatient")
    assert "asks for patience (429 slow down)" in message
    assert_says_where_and_how(message, trained, "user/impatient")


def test_a_repository_that_exists_and_does_not_say_where(trained: Path, client: Client, hub: Hub) -> None:
    hub.repositories["user/there"] = Repository()
    hub.repositories["user/there"].commit("main", "initial commit", {})
    hub.fail("POST", "/api/repos/create", 409, "You already created this model repo")
    said = client("cli", words=["push", str(trained), "user/there"])
    assert (said["code"], said["out"]) == (0, f"{hub.url}/user/there\n"), said["err"]


def test_links_are_not_followed(trained: Path, client: Client, hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    shutil.copytree(trained, folder)
    (tmp_path / "passwords.txt").write_text("secret")
    (folder / "notes[1].txt").symlink_to(tmp_path / "passwords.txt")
    (folder / "more").symlink_to(tmp_path)
    said = client("cli", words=["push", str(folder), "user/links"])
    assert said["code"] == 0 and "notes[1].txt" in said["err"] and "symbolic links are not followed" in said["err"]
    assert b"secret" not in b"".join(hub.files("user/links").values())
    assert not [name for name in hub.files("user/links") if "notes" in name or "more" in name]


@pytest.mark.parametrize("token", ["hf_" + "é" * 34, "hf_abc ddd" + "g" * 30, "hf_abc\tx" + "g" * 30])
def test_what_is_no_token_is_not_quoted(trained: Path, client: Client, token: str) -> None:
    said = client("cli", words=["push", str(trained), "user/x"], env={"HF_TOKEN": token})
    assert said["code"] == 2 and "Traceback" not in said["err"]
    assert "letter that no token has" in said["err"] and not re.search("é|ddd|ggg|xe9", said["err"])


@pytest.mark.parametrize("token", ["hf_oauth_eyJhbGciOi.J9-x_y", "hf_jwt_eyJhbGciOiJ", EXPIRED_TOKEN])
def test_every_kind_of_token_stays_here(trained: Path, client: Client, hub: Hub, token: str) -> None:
    notes = trained / "notes.md"
    notes.write_text(f"my token is {token}")
    try:
        assert "notes.md holds an access token" in push(client, trained, "user/secrets")
    finally:
        notes.unlink()
    assert set(hub.files("user/secrets")) == {".gitattributes"}
