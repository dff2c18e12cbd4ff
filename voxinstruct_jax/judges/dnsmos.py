"""Mean opinion scores as DNSMOS predicts them: speech quality, background, both, and the older P.808 score.

The networks are those of Microsoft's `speechmos` (MIT), whose own code needs librosa and opens them anew for each clip.
They hear noise and clipping; they do not hear wrong words, nor that sound ends at 4 kHz. Volume moves them by .15.

Source:
    Reddy et al. 2022, "DNSMOS P.835"; Reddy et al. 2021, "DNSMOS" (P.808).
"""

import functools
import hashlib
from importlib import import_module, resources, util
from typing import Any

import numpy as np
from jaxtyping import Float

from voxinstruct_jax.config import InputError
from voxinstruct_jax.judges.mel import slaney_filters

__all__ = ["DNSMOS_SCORES", "DnsMos"]

DNSMOS_SCORES = ("ovrl", "sig", "bak", "p808")
SAMPLE_RATE = 16_000
WINDOW_S = 9.01
_NETWORKS = ("sig_bak_ovr.onnx", "model_v8.onnx")
_MEL_WINDOW, _MEL_HOP, _NUM_MELS = 321, 160, 120
_RANGE_DB = 80.0
_RAW_TO_MOS = {
    "sig": (-0.08397278, 1.22083953, 0.0052439),
    "bak": (-0.13166888, 1.60915514, -0.39604546),
    "ovrl": (-0.06766283, 1.11546468, 0.04602535),
}
"""Polynomials of `speechmos`, highest power first."""


class DnsMos:
    """The four scores of a clip, 1 to 5."""

    def __init__(self) -> None:
        """Names the judge; its networks are opened when it first listens.

        Raises:
            InputError: The `evaluation` extra is not installed.
        """
        missing = [name for name in ("speechmos", "onnxruntime") if util.find_spec(name) is None]
        if missing:
            raise InputError(
                f"DNSMOS needs {', '.join(missing)}: run with `uv run --extra evaluation`, or install "
                "voxinstruct-jax[evaluation]"
            )
        digest = hashlib.sha256(b"".join(_network(name) for name in _NETWORKS)).hexdigest()[:12]
        self.fingerprint = f"dnsmos/9.01s/1/{digest}"
        """Names weights and settings, for reports."""

    def scores(self, samples: Float[np.ndarray, " sample"]) -> dict[str, float]:
        """Scores a clip by windows of 9.01 s a second apart; a shorter one is repeated to fill one.

        Args:
            samples: At 16 kHz, within [-1, 1], at least one.
        """
        whole = int(WINDOW_S * SAMPLE_RATE)
        while len(samples) < whole:
            samples = np.concatenate([samples, samples])
        count = int(len(samples) // SAMPLE_RATE - WINDOW_S) + 1
        windows = [samples[start : start + whole] for start in np.arange(count) * SAMPLE_RATE]
        found = [self._window(window.astype(np.float32)) for window in windows]
        return {name: float(np.mean([scores[name] for scores in found])) for name in DNSMOS_SCORES}

    def _window(self, samples: Float[np.ndarray, " sample"]) -> dict[str, float]:
        p835, p808 = self._networks
        raw = dict(zip(("sig", "bak", "ovrl"), p835.run(None, {"input_1": samples[None]})[0][0], strict=True))
        scores = {name: float(np.polyval(_RAW_TO_MOS[name], raw[name])) for name in raw}
        heard = _log_mel(samples[: -SAMPLE_RATE // 100])
        return scores | {"p808": float(p808.run(None, {"input_1": heard[None]})[0][0][0])}

    @functools.cached_property
    def _networks(self) -> tuple[Any, Any]:
        onnx = import_module("onnxruntime")
        options = onnx.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        first, second = (
            onnx.InferenceSession(_network(name), options, providers=["CPUExecutionProvider"]) for name in _NETWORKS
        )
        return first, second


def _network(name: str) -> bytes:
    return (resources.files("speechmos") / "dnsmos_models" / name).read_bytes()


def _log_mel(samples: Float[np.ndarray, " sample"]) -> Float[np.ndarray, "frame mel"]:
    """Power in dB below the loudest cell, at most 80, moved to about [-1, 1]."""
    padded = np.pad(samples, _MEL_WINDOW // 2)
    frames = np.lib.stride_tricks.sliding_window_view(padded, _MEL_WINDOW)[::_MEL_HOP]
    power = np.square(np.abs(np.fft.rfft(frames * np.hanning(_MEL_WINDOW + 1)[:-1], axis=1)))
    mel = power @ slaney_filters(_NUM_MELS, _MEL_WINDOW, SAMPLE_RATE).T
    level = 10 * np.log10(np.maximum(mel, 1e-10) / max(mel.max(), 1e-10))
    return ((np.maximum(level, -_RANGE_DB) + 40) / 40).astype(np.float32)
