"""A page on which anybody can try a fine-tuned model: what it answers, and what each modality alone would have said.

    build(model_id)  the app, a `gradio.Blocks`; `.launch()` serves it

Nothing leaves the machine: no analytics, no public link, no fonts from elsewhere, and only 127.0.0.1 unless asked.

Whoever reaches the page can send it anything, past its buttons too. So what it reads is a regular file that was
uploaded to it, below limits of size, length and pixels; questions are answered one by one; no message names a path.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import soundfile
from PIL import Image
from transformers.utils import cached_file, logging

from hf_dgl.models.extras import require

from .cross_modal_pipeline import CrossModalPipeline
from .load import pipeline

logger = logging.get_logger(__name__)

MOST_MEGABYTES = 20  # of an upload
MOST_CHARACTERS = 20_000  # of a text; encoders read some hundred tokens
MOST_PIXELS = 50_000_000
MOST_SECONDS = 600  # of audio
_MOST_WAITING = 64  # questions
_NOT_UPLOADED = "This file was not uploaded here (any more): choose it again."
_PATH = re.compile(r"(?<![\w/.])/(?:[^\s'\"/]+/)+[^\s'\"]*")

_TOP_K = 5
_FONTS = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
_CONTRAST = {  # what the theme paints paler than 4.5 to 1, in its light half
    "block_label_text_color": "*primary_700",
    "block_title_text_color": "*primary_700",
    "body_text_color_subdued": "*neutral_600",
    "input_placeholder_color": "*neutral_500",
    "button_primary_background_fill": "*primary_600",
    "button_primary_background_fill_hover": "*primary_700",
}
_EMPTY = "The answer will stand here."
_NOTHING = "Give the model something first: {}. One is enough."


def build(model: str | CrossModalPipeline, examples: Sequence[Mapping[str, Any]] | None = None, **kwargs: Any) -> Any:
    """The demo page of a model.

    Args:
        model: A folder that `hf-dgl train` wrote, a Hub id, or a pipeline.
        examples: Rows that a click fills in: per modality a text or the path of a file. Default: those that the
            model's card lists under `widget`.
        **kwargs: Of `hf_dgl.pipeline`: `device`, `revision`, `token`, ...

    Returns:
        A `gradio.Blocks`. Its `.launch()` serves it on 127.0.0.1.

    Raises:
        ValueError: the extra `demo` is not installed, or the model is of another kind.

    Example:

        >>> build("outputs/image_text").launch()
    """
    gradio = _gradio()
    name = str(model.model.config.name_or_path) if isinstance(model, CrossModalPipeline) else str(model)
    pipe = model if isinstance(model, CrossModalPipeline) else pipeline(model, **kwargs)
    arrays = [modality for modality in pipe.modalities if pipe.kind(modality) == "array"]
    if arrays:
        raise ValueError(
            f"{name or 'The model'} reads arrays of features ({', '.join(arrays)}), which nobody can type into a page."
        )
    how = (
        "all of them together; below is also what each alone would have said."
        if pipe.needs_all
        else "together, or whichever are there. Switch one off to see what the model says without it."
    )
    title = Path(name).absolute().name if name else "A multimodal model"
    with gradio.Blocks(title=f"{title} - hf_dgl", analytics_enabled=False) as app:
        gradio.Markdown(f"# {title}\nReads {_listed(pipe.modalities, 'and')}: {how}")
        with gradio.Row(equal_height=False):
            with gradio.Column(scale=1, min_width=320):
                values, switches = _inputs(gradio, pipe)
                with gradio.Row():  # on a phone one above the other
                    ask = gradio.Button("Ask the model", variant="primary")
                    clear = gradio.Button("Clear", variant="secondary")
            with gradio.Column(scale=1, min_width=320):
                note = gradio.Markdown(_EMPTY, elem_id="note")
                answers = _answers(gradio, pipe)
        inputs, outputs = [*values, *switches], [note, *answers]

        def respond(*given: Any) -> list[Any]:
            return answer(pipe, given)

        def respond_again(*given: Any) -> list[Any]:  # a switch on an empty page is no question yet
            return answer(pipe, given) if any(_is_there(value) for value in given[: len(values)]) else _blank(pipe)

        one_at_a_time: Any = {"concurrency_limit": 1, "concurrency_id": "model"}
        ask.click(respond, inputs, outputs, api_name="predict", **one_at_a_time)
        for value, kind in zip(values, map(pipe.kind, pipe.modalities), strict=True):
            if kind == "text":
                value.submit(respond, inputs, outputs, api_name=False, **one_at_a_time)
        for switch in switches:
            switch.change(respond_again, inputs, outputs, api_name=False, **one_at_a_time)
        clear.click(
            lambda: [*(None for _ in values), *(True for _ in switches), *_blank(pipe)], None, inputs + outputs
        )
        rows = _from_the_card(name, pipe) if examples is None else examples
        if rows:
            gradio.Examples([[row.get(modality) for modality in pipe.modalities] for row in rows], values)
    return app.queue(max_size=_MOST_WAITING, api_open=False)  # every question goes through the queue


def launch(model: str, host: str = "127.0.0.1", port: int | None = None, **kwargs: Any) -> None:
    """Serves a model's page until it is stopped.

    Args:
        model: A folder or a Hub id.
        host: `0.0.0.0` lets other machines in: whoever reaches the port may ask, and there is no password.
        port: Default: the first free one from 7860.
        **kwargs: Of [`build`].

    Raises:
        ValueError: as [`build`].
        OSError: the port is taken.

    Example:

        >>> launch("outputs/image_text", port=7860)
    """
    app = build(model, **kwargs)
    app.launch(server_name=host, server_port=port, **launch_settings())


def launch_settings() -> dict[str, Any]:
    """How [`launch`] serves a page: no public link, small uploads, no inner errors, fonts of the visitor's machine."""
    gradio = _gradio()
    theme = gradio.themes.Soft(font=_FONTS, font_mono=["ui-monospace", "monospace"]).set(**_CONTRAST)
    limits = {"max_file_size": MOST_MEGABYTES * 2**20, "show_error": False}
    return {"share": False, **limits, "theme": theme, "footer_links": [], "ssr_mode": False}


def answer(pipe: CrossModalPipeline, given: Any) -> list[Any]:
    """What the page shows.

    Args:
        pipe: The model.
        given: Per modality its value, then per modality whether it is switched on.

    Returns:
        A note, the fused answer, and one answer per modality; `{label: probability}` each, or a number (regression).
        If nothing is given, or a file cannot be read or is too large, the note says so and the answers are None.

    Example:

        >>> answer(pipe, [None, "an even digit", True, True])[0]
        'From the **text** only.'
    """
    names = pipe.modalities
    values, switches = given[: len(names)], given[len(names) :]
    there = [name for name, value in zip(names, values, strict=True) if _is_there(value)]
    used = [name for name, is_on in zip(names, switches, strict=True) if name in there and is_on]
    if not there:
        return [_NOTHING.format(_listed(names, "or")), *_blank(pipe)[1:]]
    if not used:
        return [f"Everything is switched off: switch on {_listed(there, 'or')}.", *_blank(pipe)[1:]]
    try:
        row = {name: _read(pipe, name, value) for name, value in zip(names, values, strict=True) if name in used}
        found = pipe(row, top_k=_TOP_K)
    except ValueError as error:
        reason = str(error).partition(" Replace the file")[0]  # the rest is advice for data sets
        reason = _PATH.sub("...", re.sub(r" '?<_io\.BytesIO object at \w+>'?", "", reason))
        return [f"**That did not work.** {reason}", *_blank(pipe)[1:]]
    except Exception:  # is for whoever runs the page, and not for its visitors
        logger.exception("The demo page could not answer a question.")
        return ["**That did not work.** The model cannot answer this.", *_blank(pipe)[1:]]
    without = [name for name in there if name not in used]
    note = f"From the **{_listed(used, 'and')}**" + (" only." if len(used) == 1 else ".")
    note += f" Without the {_listed(without, 'and')}." if without else ""
    return [note, _shown(found), *(_shown(found.get("modalities", {}).get(name)) for name in names)]


# ------------------------------------------------------------------------------------------------ the page's parts


def _inputs(gradio: Any, pipe: CrossModalPipeline) -> tuple[list[Any], list[Any]]:
    """One component and one switch per modality."""
    values, switches = [], []
    for name in pipe.modalities:
        kind = pipe.kind(name)
        with gradio.Column(variant="panel"):
            if kind == "image":
                image = gradio.Image(label=name, type="filepath", sources=["upload", "clipboard"], height=220)
                values.append(_path_only(gradio, image))
            elif kind == "audio":
                audio = gradio.Audio(label=name, type="filepath", sources=["upload", "microphone"])
                values.append(_path_only(gradio, audio))
            else:
                values.append(
                    gradio.Textbox(
                        label=name,
                        lines=2,
                        max_lines=6,
                        max_length=MOST_CHARACTERS,
                        placeholder="Type a text",
                        submit_btn=False,
                    )
                )
            switches.append(
                gradio.Checkbox(value=True, label=f"Use the {name}", elem_id=f"use-{name}", visible=not pipe.needs_all)
            )
    return values, switches


def _answers(gradio: Any, pipe: CrossModalPipeline) -> list[Any]:
    """One field for all together, and one per modality."""

    def field(label: str, elem_id: str) -> Any:
        if _is_regression(pipe):
            return gradio.Number(label=label, elem_id=elem_id, interactive=False, min_width=120)
        if pipe.model.config.problem_type == "regression":  # several quantities, which are no probabilities
            return gradio.JSON(label=label, elem_id=elem_id, min_width=120)
        return gradio.Label(label=label, elem_id=elem_id, num_top_classes=_TOP_K, min_width=120)

    fused = field("all together", "fused")
    with gradio.Row():
        return [fused, *(field(f"{name} alone", f"alone-{name}") for name in pipe.modalities)]


def _blank(pipe: CrossModalPipeline) -> list[Any]:
    return [_EMPTY, None, *(None for _ in pipe.modalities)]


def _shown(found: dict[str, Any] | None) -> Any:
    if found is None:
        return None
    return found["scores"] if "scores" in found else found["score"]


def _is_regression(pipe: CrossModalPipeline) -> bool:
    config = pipe.model.config
    return config.num_labels == 1 and config.problem_type in ("regression", None)


def _is_there(value: Any) -> bool:
    return value is not None and not (isinstance(value, str) and not value.strip())


def _read(pipe: CrossModalPipeline, name: str, value: Any) -> Any:
    """An uploaded file under its own name: messages are not to tell where this machine keeps it.

    Raises:
        ValueError: it is too large, before anything is decoded.
    """
    if pipe.kind(name) == "text":
        if len(value) > MOST_CHARACTERS:
            raise ValueError(f"The {name} has {len(value):,} characters, expected at most {MOST_CHARACTERS:,}.")
        return value
    content = Path(value).read_bytes()
    if pipe.kind(name) == "image":
        _check_pixels(name, content)
    else:
        _check_seconds(name, content)
    return {"path": Path(value).name, "bytes": content}


def _check_pixels(name: str, content: bytes) -> None:
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
    except Exception:  # no image: whoever decodes it says so
        return
    if width * height > MOST_PIXELS:
        raise ValueError(f"The {name} has {width:,} x {height:,} pixels, expected at most {MOST_PIXELS:,} in all.")


def _check_seconds(name: str, content: bytes) -> None:
    try:
        found = soundfile.info(io.BytesIO(content))
    except Exception:
        return
    if found.duration > MOST_SECONDS:
        raise ValueError(f"The {name} lasts {found.duration:,.0f} seconds, expected at most {MOST_SECONDS:,}.")


def _path_only(gradio: Any, component: Any) -> Any:
    """Hands us the uploaded file as it is: decoding is ours, and so are the words when a file is none.

    gradio looks only at paths that a request marks as files, and fetches addresses; this does neither.
    """

    def preprocess(payload: Any) -> str | None:
        if payload is None:
            return None
        path = uploaded(payload.path)
        if path is None:
            raise gradio.Error(_NOT_UPLOADED)
        return path

    async def keep(path: Any) -> str:
        found = uploaded(path)
        if found is None:
            raise gradio.Error(_NOT_UPLOADED)
        return found

    component.preprocess, component.async_move_resource_to_block_cache = preprocess, keep
    return component


def uploaded(path: Any) -> str | None:
    """Where an uploaded file lies; None, whatever the reason, for anything else that a request may name.

    Example:

        >>> uploaded("/etc/passwd") is None and uploaded("/dev/zero") is None
        True
    """
    from gradio.utils import get_upload_folder

    try:
        found = Path(path).resolve(strict=True)
        kind = found.stat()
    except (OSError, TypeError, ValueError, RuntimeError):
        return None
    is_small_file = stat.S_ISREG(kind.st_mode) and kind.st_size <= MOST_MEGABYTES * 2**20
    return str(found) if is_small_file and found.is_relative_to(Path(get_upload_folder()).resolve()) else None


def _from_the_card(name: str, pipe: CrossModalPipeline) -> list[dict[str, Any]]:
    """Those that the model's card lists under `widget`: by modality, e.g. `{image: four.png, text: an even digit}`."""
    from huggingface_hub import ModelCard

    try:
        card = cached_file(name, "README.md", _raise_exceptions_for_missing_entries=False)
        entries = ModelCard.load(card).data.get("widget") if card is not None else None
    except (OSError, ValueError):  # no card, or none that can be read: the page goes without examples
        return []
    found = []
    for entry in entries or []:
        if not isinstance(entry, dict) or not set(entry) & set(pipe.modalities):
            continue
        row = {modality: entry.get(modality) for modality in pipe.modalities}
        for modality, value in row.items():
            if value is not None and pipe.kind(modality) != "text" and "://" not in str(value):
                row[modality] = cached_file(name, str(value), _raise_exceptions_for_missing_entries=False)
        found.append(row)
    return found


def _listed(names: list[str], word: str) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"


def _gradio() -> Any:
    require("The demo", "demo", "gradio")
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
    import gradio

    return gradio
