"""Speech-like audio, synthesised in numpy: spoken digits for the offline quickstarts. Nothing here is recorded.

Source and filter, the classic model of speech: a pulse train (voicing) plus white noise (breath, hiss) is shaped,
frame by frame, by a spectral envelope with peaks at the formants of the sound being "spoken". Vowel formants are the
averages of 33 men in Peterson & Barney, "Control methods used in a study of the vowels", JASA 24(2), 1952, table II;
consonants are rough sketches. The result has what a speech encoder has to cope with (words of unequal length; pitch,
tempo and vocal tract that differ by speaker; background noise) and costs a millisecond per word.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SAMPLING_RATE = 8_000  # Hz: telephone band, holds the first three formants and keeps the quickstart cheap
_FRAME, _HOP = 256, 64  # samples: 32 ms windows every 8 ms
_FREQUENCIES_F = np.fft.rfftfreq(_FRAME, 1 / SAMPLING_RATE)
_WINDOW = np.hanning(_FRAME + 1)[:_FRAME]


@dataclass(frozen=True)
class _Sound:
    """One speech sound: formants (Hz), how much voice and hiss, where the hiss lies (centre, width in Hz), length."""

    formants: tuple[float, float, float] = (500.0, 1500.0, 2500.0)
    voice: float = 0.0
    hiss: float = 0.0
    band: tuple[float, float] = (2500.0, 1000.0)
    seconds: float = 0.10


_SOUNDS = {
    "IY": _Sound((270, 2290, 3010), voice=1.0, seconds=0.16),
    "IH": _Sound((390, 1990, 2550), voice=1.0, seconds=0.11),
    "EH": _Sound((530, 1840, 2480), voice=1.0, seconds=0.12),
    "AA": _Sound((730, 1090, 2440), voice=1.0, seconds=0.13),
    "AH": _Sound((640, 1190, 2390), voice=1.0, seconds=0.12),
    "AO": _Sound((570, 840, 2410), voice=1.0, seconds=0.16),
    "OW": _Sound((440, 900, 2300), voice=1.0, seconds=0.17),
    "UW": _Sound((300, 870, 2240), voice=1.0, seconds=0.19),
    "R": _Sound((490, 1350, 1690), voice=0.7, seconds=0.08),
    "W": _Sound((300, 650, 2200), voice=0.6, seconds=0.08),
    "N": _Sound((250, 1200, 2200), voice=0.45, seconds=0.09),
    "V": _Sound((300, 1100, 2300), voice=0.4, hiss=0.15, band=(2800, 1500), seconds=0.06),
    "Z": _Sound((250, 1700, 2600), voice=0.35, hiss=0.5, band=(3600, 600), seconds=0.09),
    "S": _Sound(hiss=0.9, band=(3700, 500), seconds=0.12),
    "F": _Sound(hiss=0.35, band=(2600, 1800), seconds=0.10),
    "TH": _Sound(hiss=0.3, band=(3000, 1600), seconds=0.09),
    "gap": _Sound(seconds=0.05),  # the closure of a stop
    "T": _Sound(hiss=0.9, band=(3300, 900), seconds=0.03),
    "K": _Sound(hiss=0.8, band=(1800, 500), seconds=0.03),
}
_WORDS = [
    ("Z", "IH", "R", "OW"),
    ("W", "AH", "N"),
    ("gap", "T", "UW"),
    ("TH", "R", "IY"),
    ("F", "AO", "R"),
    ("F", "AA", "IY", "V"),
    ("S", "IH", "gap", "K", "S"),
    ("S", "EH", "V", "AH", "N"),
    ("EH", "IY", "gap", "T"),
    ("N", "AA", "IY", "N"),
]


@dataclass(frozen=True)
class Speaker:
    """Who speaks: pitch in Hz, vocal tract (multiplies the formants), tempo (divides the durations), breath."""

    pitch: float
    tract: float
    tempo: float
    breath: float


def draw_speaker(rng: np.random.Generator) -> Speaker:
    """A random speaker, from a low slow voice with a long vocal tract to a high quick one with a short one."""
    size = rng.uniform(-1, 1)  # pitch and formants go together in people: small speakers have both higher
    return Speaker(
        pitch=float(150 * 2 ** (0.7 * size + rng.normal(0, 0.1))),
        tract=float(1 + 0.13 * size + rng.normal(0, 0.03)),
        tempo=float(rng.uniform(0.8, 1.3)),
        breath=float(rng.uniform(0.02, 0.15)),
    )


def _tracks(digit: int, speaker: Speaker, rng: np.random.Generator) -> np.ndarray:
    """Frame-wise controls, float `[num_frames, 7]`: three formants, voice, hiss, hiss centre, hiss width; smoothed."""
    rows = []
    for name in _WORDS[digit]:
        sound = _SOUNDS[name]
        num_frames = max(2, round(sound.seconds * rng.uniform(0.75, 1.3) / speaker.tempo * SAMPLING_RATE / _HOP))
        formants = np.asarray(sound.formants) * speaker.tract * rng.normal(1, 0.04, size=3)
        rows += [[*formants, sound.voice, sound.hiss, *sound.band]] * num_frames
    tracks = np.asarray(rows)
    padded = np.pad(tracks, ((2, 2), (0, 0)), mode="edge")  # coarticulation: sounds glide into each other
    return np.mean([padded[i : i + len(tracks)] for i in range(5)], axis=0)


def _envelopes(tracks_T7: np.ndarray, tilt: float) -> tuple[np.ndarray, np.ndarray]:
    """Magnitudes `[num_frames, num_frequencies]` that the voiced and the hissing source are multiplied with."""
    squares_F = _FREQUENCIES_F**2
    formants_T3 = tracks_T7[:, :3] ** 2
    damping = 1.0  # of three resonators in a row, squared: one root at the end costs less than three
    for i, bandwidth in enumerate((80.0, 110.0, 170.0)):
        damping = damping * ((formants_T3[:, i : i + 1] - squares_F) ** 2 + bandwidth**2 * squares_F)
    glottis_F = (1 + _FREQUENCIES_F / 500.0) ** -tilt  # glottal pulses lose energy towards high frequencies
    voiced = glottis_F * formants_T3.prod(axis=1, keepdims=True) / np.sqrt(damping)
    centre, width = tracks_T7[:, 5:6], tracks_T7[:, 6:7]
    hiss = np.exp(-0.5 * ((_FREQUENCIES_F - centre) / width) ** 2)
    return voiced * tracks_T7[:, 3:4], hiss * tracks_T7[:, 4:5]


def _windows(signal: np.ndarray) -> np.ndarray:
    """Overlapping windows `[num_frames, _FRAME]` of a signal."""
    return np.lib.stride_tricks.sliding_window_view(signal, _FRAME)[::_HOP] * _WINDOW


def speak(digit: int, speaker: Speaker, rng: np.random.Generator) -> np.ndarray:
    """Says one digit, without background.

    Args:
        digit: 0 to 9.
        speaker: whose voice.
        rng: source of the variation between two utterances of one speaker.

    Returns:
        float32 `[num_samples]` at `SAMPLING_RATE`, about 0.3 to 0.9 s, peak 0.9.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> speak(7, draw_speaker(rng), rng).dtype
        dtype('float32')
    """
    tracks = _tracks(digit, speaker, rng)
    lead, tail = rng.integers(4, 16, size=2)  # silence around the word, in frames
    tracks = np.pad(tracks, ((lead, tail), (0, 0)), mode="edge")
    tracks[:lead, 3:5] = 0
    tracks[len(tracks) - tail :, 3:5] = 0
    num_samples = (len(tracks) - 1) * _HOP + _FRAME

    time = np.linspace(0, 1, num_samples)
    vibrato = np.sin(2 * np.pi * (rng.uniform(3, 6) * time + rng.uniform()))
    pitch = speaker.pitch * (1.1 - 0.25 * time + 0.03 * vibrato)
    pulses = np.diff(np.floor(np.cumsum(pitch / SAMPLING_RATE)), prepend=0.0) * np.sqrt(SAMPLING_RATE / speaker.pitch)
    noise = rng.normal(size=num_samples)

    voiced, hiss = _envelopes(tracks, tilt=rng.uniform(0.6, 1.0))
    spectrum = np.fft.rfft(_windows(pulses + speaker.breath * noise)) * voiced
    spectrum += np.fft.rfft(_windows(noise)) * hiss
    frames = (np.fft.irfft(spectrum, n=_FRAME) * _WINDOW).reshape(len(tracks), -1, _HOP)
    blocks = np.zeros((num_samples // _HOP, _HOP))
    for i in range(frames.shape[1]):  # overlap-add
        blocks[i : i + len(frames)] += frames[:, i]
    word = blocks.reshape(-1)
    return (0.9 * word / np.abs(word).max()).astype(np.float32)


def babble(speakers: list[Speaker], rng: np.random.Generator, seconds: float, num_voices: int) -> np.ndarray:
    """Many people talking at once: the background noise that hides speech best, because it has speech's own spectrum.

    Returns:
        float32 `[seconds * SAMPLING_RATE]` with unit power, `num_voices` voices at a time.
    """
    num_samples = round(seconds * SAMPLING_RATE)
    crowd = np.zeros(num_samples, dtype=np.float32)
    for _ in range(num_voices):
        position = -int(rng.integers(SAMPLING_RATE))
        while position < num_samples:
            word = speak(int(rng.integers(10)), speakers[rng.integers(len(speakers))], rng)
            begin, end = max(position, 0), min(position + len(word), num_samples)
            if end > begin:
                crowd[begin:end] += word[begin - position : end - position]
            position += len(word)
    return crowd / np.sqrt(np.mean(crowd**2))


def add_background(word: np.ndarray, crowd: np.ndarray, snr_db: float, rng: np.random.Generator) -> np.ndarray:
    """`word` in front of a random stretch of `crowd` (unit power, longer than the word); `snr_db` is word over crowd.

    Returns:
        float32 `[len(word)]`, peak 0.9.
    """
    begin = int(rng.integers(len(crowd) - len(word)))
    gain = np.sqrt(np.mean(word**2)) * 10 ** (-snr_db / 20)
    mixed = word + gain * crowd[begin : begin + len(word)]
    return (0.9 * mixed / np.abs(mixed).max()).astype(np.float32)
