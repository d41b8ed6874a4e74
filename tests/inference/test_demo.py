"""The demo page: what its handler answers, the app over its API, a Space's files, and the page in a real browser."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from PIL import Image

from hf_dgl.cli import main
from hf_dgl.hub.space import space_files
from hf_dgl.inference.cross_modal_pipeline import CrossModalPipeline
from hf_dgl.inference.demo import MOST_MEGABYTES, _check_pixels, _check_seconds, answer, build, launch_settings
from tests import tiny
from tests.browser import SCREENS, browser, overflow, violations

GRADIOS_OWN = (
    'aria-prohibited-attr: <div aria-label="Empty value"',
    'label-content-name-mismatch: <button class="upload',
)
"""What axe finds in components that we do not write."""


@pytest.fixture(scope="module")
def pipeline() -> CrossModalPipeline:
    return CrossModalPipeline(tiny.tiny_model(("image", "text")), tiny.tiny_processor(("image", "text")), device="cpu")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("picture") / "red.png"
    Image.new("RGB", (20, 20), "red").save(path)
    return str(path)


@pytest.fixture(scope="module")
def address(pipeline: CrossModalPipeline) -> Iterator[str]:
    app = build(pipeline)
    _, url, share = app.launch(prevent_thread_lock=True, quiet=True, **launch_settings())
    assert share is None and "127.0.0.1" in url
    yield url
    app.close()


def test_switching_a_modality_off_shows_what_the_model_says_without_it(
    pipeline: CrossModalPipeline, picture: str
) -> None:
    note, fused, image, text = answer(pipeline, [picture, "a digit", True, True])
    assert "image and text" in note and fused and image and text
    note, without, image_again, text_again = answer(pipeline, [picture, "a digit", False, True])
    assert "Without the image" in note
    assert without == pytest.approx(text, abs=1e-5) and image_again is None
    assert without != pytest.approx(fused, abs=1e-5)


def test_empty_and_broken_inputs_are_told(pipeline: CrossModalPipeline, tmp_path: Path) -> None:
    assert answer(pipeline, [None, "  ", True, True])[0].startswith("Give the model something first: image or text")
    assert answer(pipeline, [None, "a digit", True, False])[0] == "Everything is switched off: switch on text."
    (tmp_path / "no.png").write_text("no")
    note, *answers = answer(pipeline, [str(tmp_path / "no.png"), "", True, True])
    assert "no.png" in note and str(tmp_path) not in note and answers == [None, None, None]


def test_the_app_answers_over_its_api(address: str, picture: str) -> None:
    from gradio_client import Client, handle_file

    client = Client(address, verbose=False)
    note, fused, image, text = client.predict(handle_file(picture), "a digit", True, True, api_name="/predict")
    assert "image and text" in note and len(fused["confidences"]) == tiny.NUM_LABELS
    assert image["label"] and text["label"]


def test_space_files() -> None:
    files = space_files("user/digits")
    assert set(files) == {"app.py", "requirements.txt", "README.md"}
    compile(files["app.py"], "app.py", "exec")
    settings = yaml.safe_load(files["README.md"].split("---")[1])
    assert settings["sdk"] == "gradio" and settings["app_file"] == "app.py" and settings["models"] == ["user/digits"]
    assert files["requirements.txt"].startswith("hf-dgl[demo]==")


def test_audio_and_the_cards_examples(tmp_path: Path) -> None:
    import numpy as np
    import soundfile

    modalities = ("text", "audio")
    saved = CrossModalPipeline(tiny.tiny_model(modalities), tiny.tiny_processor(modalities), device="cpu")
    saved.save_pretrained(tmp_path)
    soundfile.write(tmp_path / "beep.wav", np.sin(np.arange(4000)), 8000)
    card = "---\nwidget:\n- text: a digit\n  audio: beep.wav\n- src: other\n---\n# Model\n"
    (tmp_path / "README.md").write_text(card)
    app = build(str(tmp_path), device="cpu")
    (examples,) = [block for block in app.blocks.values() if type(block).__name__ == "Dataset"]
    assert len(examples.samples) == 1 and examples.samples[0][0] == "a digit"
    note, fused, text, audio = answer(saved, ["a digit", str(tmp_path / "beep.wav"), True, True])
    assert "text and audio" in note and fused and text and audio


def test_no_analytics() -> None:
    import os

    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False" and launch_settings()["share"] is False


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    with browser() as chromium:
        page = chromium.new_page()
        page.outside = []
        page.on("request", lambda request: page.outside.append(request.url) if _is_outside(request.url) else None)
        page.goto(address)
        yield page


def _is_outside(url: str) -> bool:
    return not url.startswith(("http://127.0.0.1", "data:", "blob:"))


def test_in_a_browser(page: Any, picture: str, tmp_path: Path) -> None:
    ask, fused, note = page.get_by_role("button", name="Ask the model"), page.locator("#fused"), page.locator("#note")
    ask.click()
    note.get_by_text("Give the model something first").wait_for(timeout=20_000)
    page.locator("input[type=file]").first.set_input_files(picture)
    page.locator("textarea").first.fill("a digit")
    page.locator("img[src*='red']").first.wait_for(timeout=20_000)
    ask.click()
    note.get_by_text("From the image and text").wait_for(timeout=20_000)
    before = fused.inner_text()
    assert "%" in before
    page.locator("#use-image input").uncheck()
    note.get_by_text("Without the image").wait_for(timeout=20_000)
    assert fused.inner_text() != before and "%" in page.locator("#alone-text").inner_text()
    page.screenshot(path=tmp_path / "page.png")
    assert page.outside == []


@pytest.mark.slow
def test_a_file_that_is_no_image_in_a_browser(page: Any, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("no")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "no.png")
    page.locator("img[src*='no.png']").first.wait_for(state="attached", timeout=20_000)
    page.get_by_role("button", name="Ask the model").click()
    page.locator("#note").get_by_text("That did not work").wait_for(timeout=20_000)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), SCREENS)
def test_it_can_be_read_and_named(address: str, width: int, scheme: str) -> None:
    """Nothing juts out, contrast is at least 4.5, and what screen readers need is there."""
    with browser() as chromium:
        page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.goto(address)
        ask, clear = (page.get_by_role("button", name=name) for name in ("Ask the model", "Clear"))
        ask.wait_for()
        page.wait_for_timeout(500)  # colours fade in
        found = [line for line in violations(page) if not line.startswith(GRADIOS_OWN)]
        assert overflow(page) <= 0 and found == []
        assert page.get_by_role("heading", level=1).inner_text() == "A multimodal model"
        upper, lower = ask.bounding_box(), clear.bounding_box()
        assert upper["y"] < lower["y"] if width == 390 else upper["x"] < lower["x"]


def test_the_page_bears_the_models_name_and_examples(
    pipeline: CrossModalPipeline, picture: str, tmp_path: Path
) -> None:
    pipeline.save_pretrained(tmp_path / "digits")
    app = build(
        str(tmp_path / "digits"), examples=[{"image": picture, "text": "a digit", "label": "red"}], device="cpu"
    )
    assert app.title == "digits - hf_dgl"
    (examples,) = [block for block in app.blocks.values() if type(block).__name__ == "Dataset"]
    assert len(examples.samples) == 1 and examples.samples[0][1] == "a digit"


@pytest.mark.slow
def test_an_example_is_one_click(pipeline: CrossModalPipeline, picture: str) -> None:
    app = build(pipeline, examples=[{"image": picture, "text": "a digit", "label": "red"}])
    _, url, _ = app.launch(prevent_thread_lock=True, quiet=True, **launch_settings())
    try:
        with browser() as chromium:
            page = chromium.new_page()
            page.goto(url)
            page.get_by_text("a digit", exact=True).click()
            page.locator("img[src*='red']").first.wait_for(timeout=20_000)
            page.get_by_role("button", name="Ask the model").click()
            page.locator("#note").get_by_text("From the image and text").wait_for(timeout=20_000)
    finally:
        app.close()


# ---- whoever reaches the page can send it anything ----------------------------------------------------------------


def ask(address: str, image: Any, text: Any = "a digit") -> tuple[str, str]:
    """What the page says to a request that no browser would send: the kind of event, and its data."""
    answer = httpx.post(f"{address}gradio_api/call/predict", json={"data": [image, text, True, True]}, timeout=20)
    event = answer.json()["event_id"]
    with httpx.stream("GET", f"{address}gradio_api/call/predict/{event}", timeout=20) as stream:
        kind, data = "".join(stream.iter_text()).strip().split("\n", 1)
    return kind, data


def upload(address: str, content: bytes, name: str = "a.png") -> Any:
    answer = httpx.post(f"{address}gradio_api/upload", files={"files": (name, content)}, timeout=20)
    return answer.json()[0] if answer.status_code == 200 else answer.status_code


@pytest.fixture
def fifo(tmp_path: Path) -> str:
    os.mkfifo(tmp_path / "fifo")
    return str(tmp_path / "fifo")


@pytest.mark.parametrize("meta", [{}, {"meta": {"_type": "gradio.FileData"}}], ids=["bare", "as a file"])
def test_only_what_was_uploaded_is_read(address: str, fifo: str, picture: str, meta: dict[str, Any]) -> None:
    from gradio.utils import get_upload_folder

    link = Path(get_upload_folder()) / "link.png"
    link.parent.mkdir(exist_ok=True, parents=True)
    link.unlink(missing_ok=True)
    link.symlink_to(picture)
    paths = ["/etc/passwd", "/etc/nothing", "/dev/zero", fifo, "/proc/self/environ", picture, "../../etc/passwd", ""]
    paths += [str(link), get_upload_folder(), "http://127.0.0.1:1/a.png", "file:///etc/passwd", "\0"]
    try:
        said = {path: ask(address, {"path": path, **meta}) for path in paths}
    finally:
        link.unlink()
    assert {kind for kind, _ in said.values()} == {"event: error"}
    assert len({*said.values()}) <= 2  # nothing tells which files there are
    assert said["/etc/passwd"] == said["/etc/nothing"]
    for _, data in said.values():
        assert "/" not in data and "passwd" not in data
    for payload in ({"url": "http://127.0.0.1:1/a.png", **meta}, {"path": None, "url": "file:///etc/passwd", **meta}):
        assert ask(address, payload)[0] == "event: error"
    note = ask(address, {"path": upload(address, Path(picture).read_bytes()), **meta})[1]
    assert "From the **image and text**" in note  # what was uploaded is


def test_limits_of_the_page(address: str, pipeline: CrossModalPipeline) -> None:
    assert upload(address, b"0" * (MOST_MEGABYTES * 2**20 + 1)) == 413
    begun = time.monotonic()
    assert "10,000,000 characters, expected at most 20,000" in ask(address, None, "x" * 10_000_000)[1]
    large = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(large, "PNG")
    said = ask(address, {"path": upload(address, large.getvalue())})[1]
    assert "10,000 x 10,000 pixels, expected at most 50,000,000" in said
    assert time.monotonic() - begun < 10
    direct = httpx.post(f"{address}gradio_api/run/predict", json={"data": [None, "a digit", True, True]})
    assert direct.status_code >= 400 and "queue" in direct.text  # nothing goes past the queue
    note = answer(pipeline, [None, 7, True, True])[0]
    assert "That did not work" in note and "Traceback" not in note


def test_long_audio_on_the_page(tmp_path: Path) -> None:
    import numpy as np
    import soundfile

    long = io.BytesIO()
    soundfile.write(long, np.zeros(8000 * 601, dtype=np.int16), 8000, format="FLAC")
    assert len(long.getvalue()) < 2**20
    with pytest.raises(ValueError, match="The audio lasts 601 seconds, expected at most 600"):
        _check_seconds("audio", long.getvalue())
    _check_seconds("audio", b"no audio")
    _check_pixels("image", b"no image")


def test_the_help_says_what_a_host_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "no password" in said and "127.0.0.1, this machine only" in said
