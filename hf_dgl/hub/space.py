"""The files of a Hugging Face Space that shows a model: the demo page, served from there."""

from __future__ import annotations

from importlib.metadata import version

from hf_dgl.models.extras import require


def space_files(model_id: str) -> dict[str, str]:
    """The files of a Space that shows a model.

    Args:
        model_id: `user/name` on the Hub.

    Returns:
        File name -> text: `app.py`, `requirements.txt`, `README.md` with the Space's settings.

    Raises:
        ValueError: the extra `demo` is not installed (its version goes into the settings).

    Example:

        >>> print(space_files("user/digits")["app.py"])
        from hf_dgl.inference.demo import build, launch_settings
        <BLANKLINE>
        build('user/digits').launch(**launch_settings())
    """
    require("A Space", "demo", "gradio")
    title = model_id.rpartition("/")[2]
    imports = "from hf_dgl.inference.demo import build, launch_settings"
    app = f"{imports}\n\nbuild({model_id!r}).launch(**launch_settings())\n"
    readme = f"""---
title: {title}
emoji: 🔎
colorFrom: blue
colorTo: green
sdk: gradio
sdk_version: {version("gradio")}
app_file: app.py
models:
- {model_id}
---

Try [{model_id}](https://huggingface.co/{model_id}): together, and each modality alone. Made with hf_dgl.
"""
    return {"app.py": app, "requirements.txt": f"hf-dgl[demo]=={version('hf-dgl')}\n", "README.md": readme}
