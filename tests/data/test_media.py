import io
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from hf_dgl.data.media import load_audio, load_image


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


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "MP3"])
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
