"""A generated clip against a reference recording: mel-cepstral distortion, F0 and voicing errors along its path.

Both are aligned by dynamic time warping of their cepstra. Read `compare_spectra`, then `compare_pitch`.

Source:
    Kubichek 1993, "Mel-cepstral distance measure"; Tokuda et al. 1994 for mel-cepstra by frequency warping; Chu and
    Alwan 2009 for GPE, VDE and FFE.
"""

import dataclasses
import functools
import warnings
from importlib import import_module, util
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from voxinstruct_jax.config import InputError
from voxinstruct_jax.judges.pitch import PitchTrack

__all__ = ["FRAME_S", "SpectralPath", "compare_pitch", "compare_spectra", "mel_cepstra", "warping_path"]

SAMPLE_RATE = 16_000
"""The lower of usual bandwidths: above it, bands that one side lacks would rule log spectra."""
FRAME_S = 0.005
ORDER, WARP = 24, 0.42
FLOOR_DB, ACTIVE_DB = 60.0, 40.0
LONGEST_RATIO = 3.0
"""A pair further apart in length is a runaway, and its path would take memory by the product."""
GROSS_ERROR = 0.2


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpectralPath:
    """How two clips lie against each other.

    Attributes:
        mcd_db: Mel-cepstral distortion, mean along the path, dB.
        ratio: Steps of the path over frames of the longer clip: 1 where rhythm agrees.
        generated, reference: Frame of each step, 5 ms apart, counted from the start of the clip.
    """

    mcd_db: float
    ratio: float
    generated: Int[np.ndarray, " step"]
    reference: Int[np.ndarray, " step"]


def compare_spectra(generated: Float[np.ndarray, " a"], reference: Float[np.ndarray, " b"]) -> SpectralPath | None:
    """Mel-cepstral distortion `mcd.vox`.

    `10 / ln 10 * sqrt 2 * mean |c - c'|` over the warping path, c_1 to c_24 of WORLD's envelope at 16 kHz every 5 ms;
    c_0 is left out, so that volume does not count, and so are frames 40 dB below the loudest.

    Args:
        generated: At 16 kHz.
        reference: Likewise.

    Returns:
        None where either is silent, or one is more than three times as long as the other.

    Raises:
        InputError: The `evaluation` extra is not installed.
    """
    tables = [mel_cepstra(samples) for samples in (generated, reference)]
    first, second = (table[:, 1:] for table, _ in tables)
    if not min(len(first), len(second)) or max(len(first), len(second)) > LONGEST_RATIO * min(len(first), len(second)):
        return None
    one, other = warping_path(first, second)
    mean = np.linalg.norm(first[one] - second[other], axis=1).mean()
    return SpectralPath(
        mcd_db=float(10 / np.log(10) * np.sqrt(2) * mean),
        ratio=len(one) / max(len(first), len(second)),
        generated=tables[0][1][one],
        reference=tables[1][1][other],
    )


def compare_pitch(generated: PitchTrack, reference: PitchTrack, path: SpectralPath) -> dict[str, float | None]:
    """F0 and voicing errors along a path.

    Returns:
        `rmse_hz`, `rmse_cents`, `correlation` (of log F0) and `gpe20` (share off by over 20 %) over steps where both
        are voiced, None where there are fewer than two; `vde` (share of steps whose voicing differs), `ffe` (either).
    """
    (f0, voiced), (true_f0, true_voiced) = (
        _at(track, frames) for track, frames in ((generated, path.generated), (reference, path.reference))
    )
    both = voiced & true_voiced
    gross = both & (np.abs(f0 - true_f0) > GROSS_ERROR * true_f0)
    differs = voiced != true_voiced
    errors: dict[str, float | None] = {"vde": float(differs.mean()), "ffe": float((gross | differs).mean())}
    if both.sum() < 2:
        return {**dict.fromkeys(("rmse_hz", "rmse_cents", "correlation", "gpe20")), **errors}
    found, true = f0[both], true_f0[both]
    logs = np.log(found), np.log(true)
    spread = logs[0].std() * logs[1].std()
    return {
        "rmse_hz": float(np.sqrt(np.mean(np.square(found - true)))),
        "rmse_cents": float(1200 / np.log(2) * np.sqrt(np.mean(np.square(logs[0] - logs[1])))),
        "correlation": float(np.mean((logs[0] - logs[0].mean()) * (logs[1] - logs[1].mean())) / spread)
        if spread
        else None,
        "gpe20": float(gross[both].mean()),
        **errors,
    }


def mel_cepstra(
    samples: Float[np.ndarray, " sample"],
) -> tuple[Float[np.ndarray, "frame coefficient"], Int[np.ndarray, " frame"]]:
    """Mel-cepstra c_0 to c_24 of the frames that are not silent, and their numbers in the clip.

    Raises:
        InputError: The `evaluation` extra is not installed.
    """
    world = _world()
    x = np.asarray(samples, np.float64)
    if not np.abs(x).max(initial=0.0) > 0:
        return np.zeros((0, ORDER + 1)), np.zeros(0, np.int64)
    f0, times_s = world.dio(x, SAMPLE_RATE, frame_period=1000 * FRAME_S)
    envelope = world.cheaptrick(x, world.stonemask(x, f0, times_s, SAMPLE_RATE), times_s, SAMPLE_RATE)
    log_power = np.log(np.maximum(envelope, envelope.max(axis=1, keepdims=True) * 10 ** (-FLOOR_DB / 10)))
    cepstra = np.fft.irfft(0.5 * log_power, axis=1)[:, : log_power.shape[1]]
    cepstra[:, 1:-1] *= 2  # both halves of the even log spectrum
    level = 10 * np.log10(envelope.mean(axis=1))
    loud = np.flatnonzero(level > level.max() - ACTIVE_DB)
    return cepstra[loud] @ _warping(cepstra.shape[1]).T, loud


def warping_path(
    one: Float[np.ndarray, "a dim"], other: Float[np.ndarray, "b dim"]
) -> tuple[Int[np.ndarray, " step"], Int[np.ndarray, " step"]]:
    """The cheapest way through the table of Euclidean distances, from corner to corner, one step either way or both.

    Exact, antidiagonal by antidiagonal.
    """
    squares = (one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * one @ other.T
    cost = np.sqrt(np.maximum(squares, 0.0))
    rows, columns = cost.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    for diagonal in range(2, rows + columns + 1):
        row = np.arange(max(1, diagonal - columns), min(rows, diagonal - 1) + 1)
        column = diagonal - row
        before = np.minimum(total[row - 1, column - 1], np.minimum(total[row - 1, column], total[row, column - 1]))
        total[row, column] = cost[row - 1, column - 1] + before
    place, steps = (rows, columns), []
    while place != (0, 0):
        steps.append(place)
        row, column = place
        choices = ((row - 1, column - 1), (row - 1, column), (row, column - 1))
        place = min(choices, key=lambda where: total[where])
    path = np.array(steps[::-1]) - 1
    return path[:, 0], path[:, 1]


@functools.cache
def _warping(size: int) -> Float[np.ndarray, "coefficient quefrency"]:
    """Maps a cepstrum to mel-cepstra: the all-pass warping of frequency by `WARP`, linear in the cepstrum."""
    table = np.zeros((ORDER + 1, size))
    warped = np.zeros(ORDER + 1)
    for quefrency in range(size):  # Oppenheim and Johnson's recursion, run on an impulse that moves away
        last = warped.copy()
        warped[0] = (quefrency == 0) + WARP * last[0]
        warped[1] = (1 - WARP**2) * last[0] + WARP * last[1]
        for order in range(2, ORDER + 1):
            warped[order] = last[order - 1] + WARP * (last[order] - warped[order - 1])
        table[:, quefrency] = warped
    return table


@functools.cache
def _world() -> Any:
    if util.find_spec("pyworld") is None:
        raise InputError(
            "mel-cepstra need pyworld: run with `uv run --extra evaluation`, or install voxinstruct-jax[evaluation]"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports a part of setuptools that warns
        return import_module("pyworld")


def _at(track: PitchTrack, frames: Int[np.ndarray, " step"]) -> tuple[np.ndarray, np.ndarray]:
    """F0 and voicing of the track at frames 5 ms apart."""
    if not len(track.times_s):
        return np.zeros(len(frames)), np.zeros(len(frames), bool)
    nearest = np.abs(track.times_s[None] - (frames * FRAME_S)[:, None]).argmin(axis=1)
    return track.f0_hz[nearest].astype(np.float64), track.voiced[nearest]
