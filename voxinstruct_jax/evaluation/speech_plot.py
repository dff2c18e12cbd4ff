"""One figure of an utterance: mel spectrogram with the pitch curve over it, energy below, the stressed word marked.

Source: VoxInstruct, figure 3.
"""

import contextlib
import html
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from voxinstruct_jax.audio.spectrogram import MelConfig, log_mel
from voxinstruct_jax.judges.pitch import (
    FLOOR_DBFS,
    EnergyTrack,
    PitchTrack,
    active_level_dbfs,
    energy_track,
    pitch_track,
)

__all__ = ["draw_histogram", "draw_intervals", "draw_speech", "draw_tokens"]

_INK = "#123456"  # stands for the page's text colour, which changes between light and dark
_MANY_DIGITS = re.compile(r"(\d\.\d)\d+")
"""Places beyond a tenth of a point, which no one sees; they, names of groups and spaces are a third of a page."""
_PITCH, _ENERGY, _STRESS = "#35d0ff", "#e08a1e", "#ff4fa3"
_SHOWN_RANGE = 9.0  # natural-log units below the loudest bin, some 78 dB
_PITCH_HZ = (50.0, 500.0)


def draw_speech(
    samples: Float[np.ndarray, " sample"],
    sample_rate: int,
    *,
    salt: str,
    stress_s: tuple[float, float] | None = None,
    words: Sequence[tuple[str, float, float]] = (),
) -> str:
    """Draws an utterance as inline SVG whose axes take the colour of the page's text.

    Args:
        samples: Mono, within [-1, 1].
        sample_rate: Hz.
        salt: Different for each figure of a page, so that ids inside the SVGs differ.
        stress_s: Start and end of the stressed word, s.
        words: With start and end, s: written over the spectrogram.

    Returns:
        An `<svg>` element.
    """
    pitch = pitch_track(samples, sample_rate)
    energy = energy_track(samples, sample_rate)
    with _styled(salt):
        figure = _figure(height=3.4)
        mel_axis, energy_axis = figure.subplots(2, 1, sharex=True, height_ratios=(2.4, 1))
        _draw_mel(mel_axis, samples, sample_rate)
        _draw_pitch(mel_axis, pitch)
        _draw_energy(energy_axis, energy)
        energy_axis.set_xlim(0, len(samples) / sample_rate)
        if stress_s is not None:
            for axis in (mel_axis, energy_axis):
                axis.axvspan(*stress_s, facecolor="none", edgecolor=_STRESS, linewidth=1.5, linestyle="--")
        _write_spans([mel_axis, energy_axis], words)
        drawn = _svg(figure)
    return _inline(drawn, _describe(samples, sample_rate, pitch, energy))


def draw_tokens(
    samples: Float[np.ndarray, " sample"] | None,
    sample_rate: int,
    *,
    salt: str,
    tracks: Mapping[str, Int[np.ndarray, " _frame"]],
    frame_rate: float,
    spans: Sequence[tuple[str, float, float]] = (),
) -> str:
    """Draws tokens against time, under the mel spectrogram of the same clip.

    Args:
        samples: Mono; None where there is no audio.
        sample_rate: Hz.
        salt: As in `draw_speech`.
        tracks: Token ids by name, one a frame; empty ones are left out.
        frame_rate: Of the tokens, Hz.
        spans: Words or characters with start and end, s: written over the spectrogram.

    Returns:
        An `<svg>` element; empty if there is nothing to draw.
    """
    shown = {name: track for name, track in tracks.items() if len(track)}
    num_axes = len(shown) + (samples is not None)
    if not num_axes:
        return ""
    end_s = max(
        [0.0 if samples is None else len(samples) / sample_rate, *(len(t) / frame_rate for t in shown.values())]
    )
    with _styled(salt):
        figure = _figure(height=1.2 + num_axes)
        axes = figure.subplots(
            num_axes, 1, sharex=True, squeeze=False, height_ratios=[2.0] * (num_axes - len(shown)) + [1.0] * len(shown)
        )[:, 0]
        if samples is not None:
            _draw_mel(axes[0], samples, sample_rate)
        for axis, (name, track) in zip(axes[num_axes - len(shown) :], shown.items(), strict=True):
            axis.stairs(track, np.arange(len(track) + 1) / frame_rate, color=_ENERGY, linewidth=1.0, baseline=None)
            axis.set_ylabel(name)
        _write_spans(list(axes), spans)
        axes[-1].set_xlim(0, end_s)
        axes[-1].set_xlabel("time (s)")
        return _inline(_svg(figure), f"Spectrogram and tokens over {end_s:.1f} s: {', '.join(shown) or 'no tokens'}")


def draw_histogram(
    edges: Sequence[float],
    counts: Mapping[str, Sequence[int | float]],
    unit: str,
    *,
    salt: str,
    what: str = "clips",
) -> str:
    """Draws stacked bars as inline SVG.

    Args:
        edges: Of the bins.
        counts: By name, one a bin.
        unit: Of the edges.
        salt: As in `draw_speech`.
        what: Is counted.
    """
    with _styled(salt):
        figure = _figure(height=2.2)
        axis = figure.subplots()
        below = np.zeros(len(edges) - 1)
        for name, values in counts.items():
            axis.bar(edges[:-1], values, np.diff(edges), bottom=below, align="edge", label=name, linewidth=0)
            below += np.asarray(values)
        axis.set_xlabel(unit)
        axis.set_ylabel(what)
        if len(counts) > 1:
            axis.legend(frameon=False)
        total = int(below.sum())
        return _inline(_svg(figure), f"Histogram of {total} {what} over {unit}")


def draw_intervals(points: Sequence[tuple[str, float, float | None, float | None]], unit: str, *, salt: str) -> str:
    """Draws values with their intervals as inline SVG, one line each.

    Args:
        points: Label, value, low and high edge (None where there is no interval).
        unit: What the values are.
        salt: As in `draw_speech`.
    """
    with _styled(salt):
        figure = _figure(height=0.7 + 0.26 * len(points))
        axis = figure.subplots()
        for line, (_, value, low, high) in enumerate(points):
            if low is not None and high is not None:
                axis.plot([low, high], [line, line], color=_ENERGY, linewidth=2.0, solid_capstyle="round")
            axis.plot([value], [line], "o", color=_PITCH, markersize=5)
        axis.set_yticks(range(len(points)), labels=[label.replace("$", r"\$") for label, *_ in points])
        axis.invert_yaxis()
        axis.set_xlabel(unit.replace("$", r"\$"))
        axis.grid(visible=True, axis="x", color=_INK, alpha=0.2, linewidth=0.5)
        return _inline(_svg(figure), f"{len(points)} values of {html.escape(unit)} with their intervals")


@contextlib.contextmanager
def _styled(salt: str) -> Iterator[None]:
    """Text stays text, and takes the colour of the page."""
    import matplotlib as mpl

    coloured = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    font = {"font.size": 9, "font.sans-serif": ["DejaVu Sans"]}  # alone: every text names all of them
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": salt, **font}
    with mpl.rc_context(settings | dict.fromkeys(coloured, _INK)):
        yield


def _figure(*, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(5.4, height), layout="constrained")


def _svg(figure: Any) -> str:
    drawn = io.StringIO()
    with warnings.catch_warnings():
        # characters stay text in the SVG: the reader's fonts show what Matplotlib's own lacks
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(drawn, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return drawn.getvalue()


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


def _write_spans(axes: Sequence[Any], spans: Sequence[tuple[str, float, float]]) -> None:
    """Writes each text over the first axis, in the middle of its time, and a line through all where it begins."""
    for text, start_s, stop_s in spans:
        for axis in axes:
            axis.axvline(start_s, color=_STRESS, linewidth=0.5, alpha=0.6)
        shown = text.replace("$", r"\$")  # foreign: no mathematics of Matplotlib
        above = axes[0].get_xaxis_transform()
        axes[0].text((start_s + stop_s) / 2, 1.02, shown, transform=above, ha="center", fontsize=7)


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
    element = re.sub(r'="[^"]*"', lambda value: _MANY_DIGITS.sub(r"\1", value[0]), re.sub(r"\n\s+", "\n", element))
    # nothing refers to groups, and most text is not turned
    element = re.sub(r">\n<", "><", re.sub(r'(?<=<g) id="[^"]*"| transform="rotate\(-0 [^"]*"', "", element))
    element = re.sub(r'style="[^"]*"', lambda style: re.sub(r"(?<=[:;]) ", "", style[0]), element)
    opening, rest = element.split(">", 1)
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)
    return f'{opening} role="img" aria-label="{description}"><title>{description}</title>{rest}'.strip()
