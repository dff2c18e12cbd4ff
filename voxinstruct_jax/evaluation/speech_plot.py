"""One figure of an utterance: mel spectrogram with the pitch curve over it, energy below, the stressed word marked.

Source: VoxInstruct, figure 3.
"""

import io
import re
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from voxinstruct_jax.audio.spectrogram import MelConfig, log_mel
from voxinstruct_jax.judges.pitch import (
    FLOOR_DBFS,
    EnergyTrack,
    PitchTrack,
    active_level_dbfs,
    energy_track,
    pitch_track,
)

__all__ = ["draw_speech"]

_INK = "#123456"  # stands for the page's text colour, which changes between light and dark
_PITCH, _ENERGY, _STRESS = "#35d0ff", "#e08a1e", "#ff4fa3"
_SHOWN_RANGE = 9.0  # natural-log units below the loudest bin, some 78 dB
_PITCH_HZ = (50.0, 500.0)


def draw_speech(
    samples: Float[np.ndarray, " sample"],
    sample_rate: int,
    *,
    salt: str,
    stress_s: tuple[float, float] | None = None,
) -> str:
    """Draws an utterance as inline SVG whose axes take the colour of the page's text.

    Args:
        samples: Mono, within [-1, 1].
        sample_rate: Hz.
        salt: Different for each figure of a page, so that ids inside the SVGs differ.
        stress_s: Start and end of the stressed word, s.

    Returns:
        An `<svg>` element.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    pitch = pitch_track(samples, sample_rate)
    energy = energy_track(samples, sample_rate)
    coloured = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": salt, "font.size": 9}
    with mpl.rc_context(settings | dict.fromkeys(coloured, _INK)):
        figure = Figure(figsize=(5.4, 3.4), layout="constrained")
        mel_axis, energy_axis = figure.subplots(2, 1, sharex=True, height_ratios=(2.4, 1))
        _draw_mel(mel_axis, samples, sample_rate)
        _draw_pitch(mel_axis, pitch)
        _draw_energy(energy_axis, energy)
        energy_axis.set_xlim(0, len(samples) / sample_rate)
        if stress_s is not None:
            for axis in (mel_axis, energy_axis):
                axis.axvspan(*stress_s, facecolor="none", edgecolor=_STRESS, linewidth=1.5, linestyle="--")
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(drawn.getvalue(), _describe(samples, sample_rate, pitch, energy))


def _draw_mel(axis: Any, samples: Float[np.ndarray, " sample"], sample_rate: int) -> None:
    config = MelConfig(sample_rate=sample_rate, f_max=min(12_000.0, sample_rate / 2))
    whole = -(-max(len(samples), config.n_fft) // sample_rate) * sample_rate  # whole seconds: few shapes to compile
    padded = np.pad(np.asarray(samples, np.float32), (0, whole - len(samples)))
    mel = np.asarray(log_mel(jnp.asarray(padded[None]), config))[0, : max(1, len(samples) // config.hop_length)]
    top = float(mel.max())
    axis.imshow(
        mel.T,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=top - _SHOWN_RANGE,
        vmax=top,
        extent=(0, mel.shape[0] * config.hop_length / sample_rate, 0, config.num_mels),
        interpolation="nearest",
    )
    axis.set_ylabel("mel band")


def _draw_pitch(mel_axis: Any, pitch: PitchTrack) -> None:
    axis = mel_axis.twinx()
    curve = np.where(pitch.voiced, pitch.f0_hz, np.nan)
    axis.plot(pitch.times_s, curve, color="black", alpha=0.55, linewidth=3.2, solid_capstyle="round")
    axis.plot(pitch.times_s, curve, color=_PITCH, linewidth=1.7, solid_capstyle="round")
    axis.set_ylim(*_PITCH_HZ)
    axis.set_yscale("log")
    axis.set_yticks([50, 100, 200, 400], labels=["50", "100", "200", "400"])
    axis.minorticks_off()
    axis.set_ylabel("pitch (Hz)")


def _draw_energy(axis: Any, energy: EnergyTrack) -> None:
    axis.fill_between(energy.times_s, energy.level_dbfs, FLOOR_DBFS, color=_ENERGY, alpha=0.25, linewidth=0)
    axis.plot(energy.times_s, energy.level_dbfs, color=_ENERGY, linewidth=1.2)
    axis.set_ylim(-70, 0)
    axis.set_yticks([-60, -40, -20, 0])
    axis.set_ylabel("energy (dBFS)")
    axis.set_xlabel("time (s)")
    axis.grid(visible=True, axis="y", color=_INK, alpha=0.2, linewidth=0.5)


def _describe(samples: Float[np.ndarray, " sample"], sample_rate: int, pitch: PitchTrack, energy: EnergyTrack) -> str:
    heard = "no pitch" if pitch.median_hz is None else f"median pitch {pitch.median_hz:.0f} Hz"
    level = active_level_dbfs(energy)
    return f"Mel spectrogram, pitch and energy over {len(samples) / sample_rate:.1f} s: {heard}, level {level:.0f} dBFS"


def _inline(document: str, description: str) -> str:
    """Cuts the SVG element out of a document, lets it scale, and names it for those who cannot see it."""
    element = document[document.index("<svg") :].replace(_INK, "currentColor")
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    opening, rest = element.split(">", 1)
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)
    return f'{opening} role="img" aria-label="{description}"><title>{description}</title>{rest}'.strip()
