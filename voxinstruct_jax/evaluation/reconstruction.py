"""A resynthesised clip against its original, sample by sample: what a codec loses.

Only for pairs of one length; they are aligned by up to 50 ms first. Read `compare_reconstruction`.

Source:
    Taal et al. 2011 (STOI); Jensen and Taal 2016 (ESTOI); ITU-T P.862 (PESQ); Yamamoto et al. 2020, "Parallel WaveGAN",
    section 2.2 (spectral convergence, log STFT magnitude); Le Roux et al. 2019 (SI-SDR).
"""

import warnings
from importlib import import_module, util

import numpy as np
from jaxtyping import Float

from voxinstruct_jax.config import InputError
from voxinstruct_jax.judges.mel import slaney_filters

__all__ = ["compare_reconstruction", "pesq_scores"]

SAMPLE_RATE = 16_000
LONGEST_SHIFT_S, LONGEST_DIFFERENCE_S = 0.05, 0.1
SHORTEST_S = 0.5
"""pystoi gives 1e-5 for perfect sound that is shorter."""
SILENCE = 1e-4
RESOLUTIONS = ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))
"""Transform, hop and window of multi-resolution spectra, samples."""
NUM_MELS, MEL_WINDOW, MEL_HOP = 80, 1024, 256
LSD_WINDOW, LSD_HOP = 2048, 512
FLOOR = 1e-5
MAX_SI_SDR_DB = 100.0


def compare_reconstruction(
    generated: Float[np.ndarray, " a"], reference: Float[np.ndarray, " b"]
) -> dict[str, float] | str:
    """Measures what was lost.

    Args:
        generated: At 16 kHz.
        reference: Likewise.

    Returns:
        `stoi`, `estoi` (0 to 1), `mel_l1` (mean absolute difference of natural logs of 80 mel magnitudes),
        `spectral_convergence`, `log_magnitude`, `lsd` (log-spectral distance over log10 power), `si_sdr` (dB, at most
        100; means nothing for generative decoders); or why nothing can be measured.

    Raises:
        InputError: The `evaluation` extra is not installed.
    """
    if util.find_spec("pystoi") is None:
        raise InputError("STOI needs pystoi: run with `uv run --extra evaluation`")
    if abs(len(generated) - len(reference)) > LONGEST_DIFFERENCE_S * SAMPLE_RATE:
        return "lengths differ by over .1 s: no reconstruction of the reference"
    found, true = _aligned(np.asarray(generated, np.float64), np.asarray(reference, np.float64))
    if len(true) < SHORTEST_S * SAMPLE_RATE or min(np.abs(found).max(), np.abs(true).max()) < SILENCE:
        return "silent, or shorter than .5 s"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of clips with few frames and gives 1e-5, which is no measure
        stoi, estoi = (import_module("pystoi").stoi(true, found, SAMPLE_RATE, extended=more) for more in (False, True))
    if stoi <= FLOOR:
        return "too little speech for STOI"
    mels = [
        np.log(np.maximum(_magnitude(x, MEL_WINDOW, MEL_HOP, MEL_WINDOW) @ _mel_filters().T, FLOOR))
        for x in (found, true)
    ]
    power = [np.log10(np.maximum(_magnitude(x, LSD_WINDOW, LSD_HOP, LSD_WINDOW) ** 2, 1e-10)) for x in (found, true)]
    spectra = [[_magnitude(x, *sizes) for x in (found, true)] for sizes in RESOLUTIONS]
    return {
        "stoi": float(stoi),
        "estoi": float(estoi),
        "mel_l1": float(np.abs(mels[0] - mels[1]).mean()),
        "spectral_convergence": float(np.mean([np.linalg.norm(t - f) / np.linalg.norm(t) for f, t in spectra])),
        "log_magnitude": float(
            np.mean([np.abs(np.log(np.maximum(f, FLOOR)) - np.log(np.maximum(t, FLOOR))).mean() for f, t in spectra])
        ),
        "lsd": float(np.sqrt(np.square(power[0] - power[1]).mean(axis=1)).mean()),
        "si_sdr": _si_sdr(found, true),
    }


def pesq_scores(generated: Float[np.ndarray, " a"], reference: Float[np.ndarray, " b"]) -> dict[str, float] | str:
    """PESQ, wide band at 16 kHz; or why it cannot be measured.

    Raises:
        InputError: The package `pesq` is not installed; it has no wheels, so it is in no extra.
    """
    if util.find_spec("pesq") is None:
        raise InputError("PESQ needs the package pesq, which a C compiler must build: `uv pip install pesq`")
    if abs(len(generated) - len(reference)) > LONGEST_DIFFERENCE_S * SAMPLE_RATE:
        return "lengths differ by over .1 s: no reconstruction of the reference"
    if min(np.abs(generated).max(initial=0.0), np.abs(reference).max(initial=0.0)) < SILENCE:
        return "silent"
    try:
        return {"wb": float(import_module("pesq").pesq(SAMPLE_RATE, reference, generated, "wb"))}
    except Exception as error:  # it has errors of its own for clips without an utterance
        return f"PESQ failed ({error})"


def _aligned(
    found: Float[np.ndarray, " a"], true: Float[np.ndarray, " b"]
) -> tuple[Float[np.ndarray, " sample"], Float[np.ndarray, " sample"]]:
    """Shifts one against the other to where they correlate best, up to 50 ms, and cuts both to what they share."""
    size = 2 ** int(np.ceil(np.log2(len(found) + len(true))))
    products = np.fft.irfft(np.fft.rfft(found, size) * np.conj(np.fft.rfft(true, size)), size)
    reach = int(LONGEST_SHIFT_S * SAMPLE_RATE)
    shift = int(np.argmax(np.abs(np.concatenate([products[-reach:], products[: reach + 1]])))) - reach
    found, true = found[max(0, shift) :], true[max(0, -shift) :]
    shared = min(len(found), len(true))
    return found[:shared], true[:shared]


def _magnitude(samples: np.ndarray, size: int, hop: int, window: int) -> Float[np.ndarray, "frame bin"]:
    padded = np.pad(samples, (size // 2, size))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[: len(samples) + 1 : hop]
    return np.abs(np.fft.rfft(frames * np.hanning(window + 1)[:-1], size, axis=1))


def _mel_filters() -> Float[np.ndarray, "mel bin"]:
    return slaney_filters(NUM_MELS, MEL_WINDOW, SAMPLE_RATE)


def _si_sdr(found: np.ndarray, true: np.ndarray) -> float:
    found, true = found - found.mean(), true - true.mean()
    target = (found @ true) / (true @ true) * true
    noise = float(np.sum(np.square(found - target)))
    power = float(target @ target)
    return MAX_SI_SDR_DB if noise <= power * 10 ** (-MAX_SI_SDR_DB / 10) else 10 * np.log10(max(power, 1e-30) / noise)
