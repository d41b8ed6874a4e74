import io
import os
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from hf_dgl.data.audio import _tell_of_small_numbers, load_audio
from hf_dgl.data.media import has_frames, is_transparent, load_image


def wav(array, rate=8000):
    buffer = io.BytesIO()
    soundfile.write(buffer, array, rate, format="WAV")
    return buffer.getvalue()


def test_every_form_of_an_image_gives_the_same_pixels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, size=(6, 5, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    encoded = (tmp_path / "a.png").read_bytes()
    forms = [image, pixels, tmp_path / "a.png", str(tmp_path / "a.png"), encoded, {"bytes": encoded, "path": None}]
    for form in [*forms, {"path": str(tmp_path / "a.png"), "bytes": None}]:
        assert np.array_equal(np.asarray(load_image(form)), pixels)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK", "LA"])
def test_every_mode_becomes_rgb(mode):
    assert load_image(Image.new("RGB", (4, 4), "red").convert(mode)).mode == "RGB"


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg").size == (4, 8)


def test_missing_empty_and_broken_images_are_named(tmp_path):
    with pytest.raises(ValueError, match="Cannot find the image file '.*gone.png'.*relative to that file's folder"):
        load_image(tmp_path / "gone.png")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image")
    Image.effect_noise((64, 64), 50).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:900])
    for name in ("empty.png", "text.png", "cut.png"):
        with pytest.raises(ValueError, match=f"Cannot read the image file '.*{name}'.*may lack a modality"):
            load_image(str(tmp_path / name))
    with pytest.raises(ValueError, match="Cannot read the image embedded file"):
        load_image({"bytes": b"nonsense", "path": None})
    with pytest.raises(ValueError, match="value of type int.*expected a path"):
        load_image(3)


def test_16_bit_images_are_refused_not_clipped():
    with pytest.raises(ValueError, match="mode 'I;16', expected 8 bit"):
        load_image(np.full((4, 4), 3000, dtype=np.uint16))


def test_every_form_of_audio_gives_the_same_samples(tmp_path):
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 800).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 8000, subtype="FLOAT")
    encoded = (tmp_path / "a.wav").read_bytes()
    forms = [tmp_path / "a.wav", str(tmp_path / "a.wav"), encoded, {"bytes": encoded, "path": None}, wave]
    forms += [{"array": wave, "sampling_rate": 8000}, {"array": wave.tolist(), "sampling_rate": 8000}]
    forms += [
        SimpleNamespace(get_all_samples=lambda: SimpleNamespace(data=torch.tensor(wave)[None], sample_rate=8000))
    ]
    for form in forms:
        loaded = load_audio(form, 8000)
        assert loaded.dtype == np.float32
        assert np.allclose(loaded, wave)


def test_stereo_is_mixed_down_and_rate_is_changed():
    tone = np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    stereo = np.stack([tone, np.zeros_like(tone)], axis=1)
    loaded = load_audio(wav(stereo), 16_000)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert loaded.shape == (16_000,)
    assert np.abs(loaded - expected)[500:-500].max() < 0.01


def test_integer_samples_are_scaled():
    loaded = load_audio({"array": np.array([0, 16384, -32767], dtype=np.int16), "sampling_rate": 8000}, 8000)
    assert np.allclose(loaded, [0, 0.5, -1], atol=1e-4)


def test_missing_and_broken_audio_is_named(tmp_path):
    with pytest.raises(ValueError, match="Cannot find the audio file '.*gone.wav'"):
        load_audio(str(tmp_path / "gone.wav"), 16_000)
    (tmp_path / "broken.wav").write_text("no audio")
    with pytest.raises(ValueError, match="Cannot read the audio file '.*broken.wav'"):
        load_audio(tmp_path / "broken.wav", 16_000)
    with pytest.raises(ValueError, match="holds no samples"):
        load_audio(wav(np.zeros(0)), 16_000)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "MP3", "AIFF", "AU", "VOC"])
def test_truncated_audio_is_refused_however_good_its_header(tmp_path, kind):
    path = tmp_path / f"a.{kind.lower()}"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 16_000), 16_000, format=kind)
    assert len(load_audio(path, 16_000)) >= 16_000
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    soundfile.info(path)  # the header is fine
    with pytest.raises(ValueError, match=f"Cannot read the audio file '.*a.{kind.lower()}'"):
        load_audio(path, 16_000)


def test_wav_from_a_pipe_states_no_size_and_is_whole(tmp_path):
    """ffmpeg and others write 0xFFFFFFFF where they cannot go back to fill in the size."""
    whole = bytearray(wav(np.zeros(800)))
    place = whole.index(b"data") + 4
    whole[place : place + 4] = b"\xff" * 4
    assert len(load_audio(bytes(whole), 8000)) == 800


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
@pytest.mark.filterwarnings("ignore")
def test_damage_of_any_kind_is_told_with_the_file(tmp_path, kind):
    rng = np.random.default_rng(0)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(buffer, format=kind)
    for trial in range(150):
        damaged = bytearray(buffer.getvalue())
        if trial % 2:
            damaged = damaged[: rng.integers(0, len(damaged))]
        else:
            damaged[rng.integers(0, len(damaged))] = rng.integers(0, 256)
        (tmp_path / "a").write_bytes(damaged)
        try:
            load_image(tmp_path / "a")
        except ValueError as error:
            assert str(tmp_path / "a") in str(error)


# ---------------------------------------------------------------------------- arrays: scale, channels, what is refused

TONE = 0.5 * np.sin(np.arange(800) / 5)
SCALES = {
    "int16": (TONE * 2**15).astype(np.int16),
    "int16 as a list, as rows of a data set hold it": (TONE * 2**15).astype(np.int16).tolist(),
    "int16 in floats": (TONE * 2**15).round(),
    "24 bits": (TONE * 2**23).astype(np.int32),
    "int32": (TONE * 2**31).astype(np.int32),
    "uint8": (TONE * 127 + 128).astype(np.uint8),
    "uint8 as a list": (TONE * 127 + 128).astype(np.uint8).tolist(),
    "uint16 as a list": (TONE * 2**15 + 2**15).astype(np.uint16).tolist(),
    "uint32": (TONE * 2**31 + 2**31).astype(np.uint32),
    "channels x samples": np.stack([TONE, TONE]),
    "samples x channels": np.stack([TONE, TONE], axis=1).tolist(),
    "samples x 1": TONE[:, None],
}


@pytest.mark.parametrize("array", SCALES.values(), ids=SCALES)
def test_arrays_on_any_scale_and_axis_are_the_same_sound(array):
    loaded = load_audio({"array": array, "sampling_rate": 8000}, 8000)
    assert loaded.shape == (800,) and np.abs(loaded - TONE).max() < 0.02


@pytest.mark.parametrize(
    "value, message",
    [
        ({"array": [0.0, float("nan")], "sampling_rate": 8000}, "1 of 2 samples that are NaN or infinite"),
        ({"array": [0.0, float("-inf")], "sampling_rate": 8000}, "NaN or infinite"),
        ({"array": (TONE * 1000.3).tolist(), "sampling_rate": 8000}, "samples up to 500.*expected fractions"),
        ({"array": [2**40, 0], "sampling_rate": 8000}, "more than 32 bits"),
        ({"array": np.zeros((2, 2)), "sampling_rate": 8000}, r"shape \[2, 2\]"),
        ({"array": np.zeros((80, 300)), "sampling_rate": 8000}, r"shape \[80, 300\]"),
        ({"array": [], "sampling_rate": 8000}, "no samples"),
        ({"array": ["a"], "sampling_rate": 8000}, "array of numbers"),
        ({"array": [0.5, 0.1]}, "sampling_rate=None, expected its rate in Hz"),
        ({"array": [0.5, 0.1], "sampling_rate": 0}, "sampling_rate=0"),
        ({"array": [0.5, 0.1], "sampling_rate": 44.1}, "sampling_rate=44.1, expected its rate in Hz"),
        ([0.5, 0.1], "does not say its rate"),
    ],
)
def test_arrays_that_are_no_sound_are_refused(value, message):
    with pytest.raises(ValueError, match=message):
        load_audio(value, 8000)


@pytest.mark.parametrize("rate", [np.int64(8000), np.float32(8000), 8000.0])
def test_rates_of_any_type(rate):
    assert len(load_audio({"array": TONE, "sampling_rate": rate}, 16_000)) == 1600


def claiming(kind):
    """A tenth of a second whose header claims 2^36 samples."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.sin(np.arange(800)), 8000, format=kind)
    content = bytearray(buffer.getvalue())
    if kind == "FLAC":
        content[21] |= 0x0F
        content[22:26] = b"\xff" * 4
    elif kind == "W64":
        place = content.index(b"data") + 16
        content[place : place + 8] = (2**37).to_bytes(8, "little")
    else:
        place = content.index(b"ds64") + 16
        content[place : place + 8] = (2**37).to_bytes(8, "little")
    return bytes(content)


@pytest.mark.parametrize("kind", ["FLAC", "W64", "RF64"])
def test_memory_follows_what_is_there_not_what_the_header_claims(kind):
    with pytest.raises(ValueError, match="Cannot read the audio"):
        load_audio(claiming(kind), 8000)


def test_files_are_bounded(monkeypatch):
    monkeypatch.setattr("hf_dgl.data.audio.MAX_SAMPLES", 400)
    with pytest.raises(ValueError, match=r"longer than 400 samples \(0 s\)"):
        load_audio(wav(np.zeros(800)), 8000)


@pytest.mark.parametrize("load", [load_image, lambda path: load_audio(path, 8000)])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path, load):
    os.mkfifo(tmp_path / "pipe.png")
    for path, reason in ((tmp_path / "pipe.png", "a pipe"), (tmp_path, "a folder"), ("/dev/zero", "a pipe or device")):
        with pytest.raises(ValueError, match=reason):
            load(path)


def test_formats_that_run_other_programs_are_not_opened(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.eps")
    assert Image.open(tmp_path / "a.eps").format == "EPS"
    with pytest.raises(ValueError, match="cannot identify image file"):
        load_image(tmp_path / "a.eps")


# ------------------------------------------------------------------------------------------------ transparent pictures


def icon(mode):
    """Black ink that is there in the left half only."""
    image = Image.new("RGBA", (8, 4), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 4))
    if mode == "P":
        return image.quantize()
    return image.convert("LA").convert("La") if mode == "La" else image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "La", "RGBa"])
def test_transparent_pictures_lie_on_a_background(mode, tmp_path):
    forms = [icon(mode)]
    if mode in ("RGBA", "LA", "P"):
        icon(mode).save(tmp_path / "a.png")
        forms += [tmp_path / "a.png", np.asarray(icon("RGBA"))]
    for form in forms:
        assert is_transparent(form)
        assert load_image(form).getpixel((0, 0)) == (0, 0, 0) and load_image(form).getpixel((7, 0)) == (255, 255, 255)
        assert load_image(form, "#102030").getpixel((7, 0)) == (16, 32, 48)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_colour_may_stand_for_nothing(mode, tmp_path):
    Image.new(mode, (4, 4), 0).save(tmp_path / "a.png", transparency=0 if mode == "L" else (0, 0, 0))
    assert load_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


def test_several_pictures_in_a_cell():
    one = Image.new("RGB", (4, 4), "red")
    assert load_image([one]).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(ValueError, match="got a list of 2.*a modality of its own"):
        load_image([one, one])
    assert load_image([[0, 255], [3, 4]]).size == (2, 2), "pixels"


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 1), (4, 6, 3), (4, 6, 4)])
def test_arrays_of_pixels(shape, dtype):
    array = np.full(shape, 255).astype(dtype)
    for value in (array, array.tolist()):
        assert load_image(value).size == (6, 4) and load_image(value).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("value", [[1, 2, 3], np.zeros((0, 4), np.uint8), np.zeros((1, 4, 4, 3), np.uint8)])
def test_arrays_that_are_no_picture_are_refused(value):
    with pytest.raises(ValueError, match="expected pixels .* got an array of shape"):
        load_image(value)


def test_small_whole_numbers_are_told_once(caplog):
    """A list of 8-bit samples cannot be told from very quiet 16-bit ones; an array can."""
    _tell_of_small_numbers.cache_clear()
    samples = [0, 64, -64, 127]
    for _ in range(2):
        assert abs(load_audio({"array": samples, "sampling_rate": 8000}, 8000)).max() < 0.01
    assert caplog.text.count("very quiet 16-bit samples") == 1
    assert abs(load_audio({"array": np.int8(samples), "sampling_rate": 8000}, 8000)).max() == pytest.approx(127 / 128)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png", "a.tif", "a.mpo"])
def test_of_several_frames_the_first_is_read_and_told(name, tmp_path):
    first, others = Image.new("RGB", (4, 4), (255, 0, 0)), [Image.new("RGB", (4, 4))] * 2
    first.save(tmp_path / name, save_all=True, append_images=others)
    assert load_image(tmp_path / name).getpixel((0, 0))[0] > 250
    assert has_frames(str(tmp_path / name)) == (name != "a.mpo")
    first.save(tmp_path / name, **({"format": "jpeg"} if name == "a.mpo" else {}))
    assert not has_frames(str(tmp_path / name)) and not has_frames(tmp_path / "gone.gif")


def test_paths_from_windows_are_explained():
    with pytest.raises(ValueError, match=r"Cannot find the image file 'images.*a.png'. Backslashes .*: write '/'"):
        load_image("images\\a.png")
