"""Files that a column names by http(s) addresses: fetched if that is allowed, once, within bounds; else named."""

import io
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from PIL import Image

from hf_dgl.data import addresses
from hf_dgl.data.broken import find_broken_rows
from hf_dgl.data.collator import decode_value
from hf_dgl.data.looking import LookingProcessor
from hf_dgl.data.sources import load_data
from hf_dgl.recipe.assembly import build_processor
from hf_dgl.recipe.recipe import make_recipe
from tests.recipes import tiny_recipe


@pytest.fixture
def server():
    """Serves a red picture at any path but /gone, and counts what was asked for."""
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, format="PNG")
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(404 if self.path == "/gone" else 200)
            self.end_headers()
            self.wfile.write(buffer.getvalue())

        def log_message(self, *args):
            pass

    httpd = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_port}", asked
    httpd.shutdown()


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("column", ["image", "photo"])
def test_addresses_stay_addresses(tmp_path, server, column, streaming):
    url, asked = server
    (tmp_path / "a.png").write_bytes(b"")  # so that the column is known to hold files
    lines = [f"{url}/{i}.png,{'ab'[i % 2]}" for i in range(20)]
    (tmp_path / "my.csv").write_text("\n".join([f"{column},label", "a.png,a", *lines]))
    data = load_data(str(tmp_path / "my.csv"), None, {"image": column}, test_split=None, streaming=streaming)
    values = [row["image"] for split in data.values() for row in split]
    assert sum(value.startswith(url) for value in values) == 20 and not asked


def test_not_allowed_says_so_and_fetches_nothing(server):
    url, asked = server
    with pytest.raises(ValueError, match="is an address, no file.*--allow_urls true"):
        decode_value(LookingProcessor({"image": "image"}), "image", f"{url}/a.png")
    assert not asked


@pytest.mark.parametrize("form", [str, lambda url: {"path": url, "bytes": None}])
def test_allowed_are_fetched_once(server, form):
    url, asked = server
    processor = LookingProcessor({"image": "image"})
    processor.allow_urls = True
    for _ in range(2):
        assert decode_value(processor, "image", form(f"{url}/a.png")).getpixel((0, 0)) == (255, 0, 0)
    assert asked == ["/a.png"]


def test_what_cannot_be_fetched_is_a_broken_row(tmp_path, server, monkeypatch):
    url, _ = server
    (tmp_path / "my.csv").write_text("\n".join(["image,label", f"{url}/gone,a", *[f"{url}/x,b"] * 20]))
    processor = LookingProcessor({"image": "image"})
    processor.allow_urls = True
    data = load_data(str(tmp_path / "my.csv"), modalities=["image"], test_split=None)
    broken, _ = find_broken_rows(data, processor, 0)
    assert [row.row for row in broken] == ["train[0]"] and "answered 404" in broken[0].reason
    monkeypatch.setattr(addresses, "MAX_DOWNLOAD", 10)
    with pytest.raises(ValueError, match="larger than 0 MiB"):
        decode_value(processor, "image", f"{url}/other")


def test_settings_reach_the_processor_and_the_background_is_saved(tmp_path):
    values = tiny_recipe(tmp_path, "image", "text", allow_urls=True, image_background="#102030")
    encoders = {"image": make_encoder("image"), "text": make_encoder("text")}
    processor = build_processor(make_recipe(values), encoders, {"image": [], "text": ["a b"]})
    assert processor.allow_urls
    processor.save_pretrained(tmp_path)
    again = type(processor).from_pretrained(tmp_path)
    assert not again.allow_urls, "only for the run that asked for it"
    nothing = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert decode_value(again, "image", nothing).getpixel((0, 0)) == (16, 32, 48)
    with pytest.raises(ValueError, match="image_background: expected a colour such as white"):
        make_recipe({**values, "image_background": "whitish"})


def make_encoder(name):
    from hf_dgl.models.encoder_specs import resolve_encoder
    from tests.recipes import TINY_ENCODERS

    return resolve_encoder(name, TINY_ENCODERS[name])
