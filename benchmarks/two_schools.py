"""Draws how the two schools make one sentence, for docs/two_schools.md.

Run: uv run --extra evaluation python benchmarks/two_schools.py --flow voices/instructaudio_small --out docs/pictures

`codec_lm.webp`: the embedded voice's semantic tokens and codebooks, and what the leading codebooks alone sound like.
`flow.webp`: the same words by a flow of the same latents, from the same noise in more and more steps.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import voxinstruct_jax as vox
from voxinstruct_jax.audio.spectrogram import MelConfig, log_mel
from voxinstruct_jax.latent_voice import LatentVoice
from voxinstruct_jax.voice import Voice
from voxinstruct_jax.voice_folder import decode_clip

INSTRUCTION = 'A woman says slowly: "The wind blew fresh in their faces."'
STEPS = (1, 2, 4, 8, 32)
WIDTH, DPI = 9.0, 80
QUALITY = 50
"""Of WebP: some tens of kilobytes."""


def main() -> int:
    """Draws both pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--flow", required=True, help="folder of a flow's voice")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"), help="folder (default: docs/pictures)")
    parser.add_argument("--instruction", default=INSTRUCTION)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    flow = vox.load(options.flow)
    if not isinstance(flow, LatentVoice):
        parser.error(f"{options.flow}: not the voice of a flow; give the folder of one")
    pictures = {
        "codec_lm": draw_codec_lm(vox.load(), options.instruction),
        "flow": draw_flow(flow, options.instruction),
    }
    for name, figure in pictures.items():
        figure.savefig(options.out / f"{name}.webp", dpi=DPI, pil_kwargs={"quality": QUALITY})
    return 0


def draw_codec_lm(voice: Voice, instruction: str) -> Figure:
    """Tokens above, sound from one, some and all codebooks below."""
    audio = voice.synthesize(instruction, seed=1)
    books, rate = len(audio.acoustic), voice.codec.config.frame_rate
    heard = sorted({1, books // 2, books})
    figure = Figure(figsize=(WIDTH, 2 + 1.4 * len(heard)), layout="constrained")
    top, *below = figure.subplots(1 + len(heard), 1, sharex=True, height_ratios=[1.2, *[1.0] * len(heard)])
    lanes = np.stack([audio.semantic[: audio.acoustic.shape[1]] / voice.ar.config.vocabulary.num_semantic,
                      *(codes / voice.codec.config.codebook_size for codes in audio.acoustic)])  # fmt: skip
    extent = (0, lanes.shape[1] / rate, len(lanes) - 0.5, -0.5)
    top.imshow(lanes, aspect="auto", cmap="nipy_spectral", interpolation="nearest", extent=extent)
    top.set_yticks(range(len(lanes)), ["semantic", *(f"codebook {number + 1}" for number in range(books))], fontsize=7)
    top.set_title(f"tokens, {rate:g} frames a second, a colour each", fontsize=9, loc="left")
    for axis, count in zip(below, heard, strict=True):
        samples = decode_clip(voice.codec, audio.acoustic[:count])
        name = "the first codebook alone" if count == 1 else f"{count} codebooks"
        _draw_mel(axis, samples, audio.sample_rate, f"sound of {name}")
    below[-1].set_xlabel("seconds")
    return figure


def draw_flow(voice: LatentVoice, instruction: str) -> Figure:
    """From the same noise in more and more steps."""
    figure = Figure(figsize=(WIDTH, 1.4 * len(STEPS)), layout="constrained")
    axes = figure.subplots(len(STEPS), 1, sharex=True)
    for axis, steps in zip(axes, STEPS, strict=True):
        audio = _with_steps(voice, steps).synthesize(instruction, seed=1)
        _draw_mel(axis, audio.samples, audio.sample_rate, f"{steps} step{'s' * (steps > 1)}")
    axes[-1].set_xlabel("seconds")
    return figure


def _with_steps(voice: LatentVoice, steps: int) -> LatentVoice:
    sampler: Any = voice.config.diffusion.sampler
    sampler = dataclasses.replace(sampler, grid=dataclasses.replace(sampler.grid, steps=steps))
    diffusion = dataclasses.replace(voice.config.diffusion, sampler=sampler)
    return dataclasses.replace(voice, config=dataclasses.replace(voice.config, diffusion=diffusion))


def _draw_mel(axis: Axes, samples: Float[np.ndarray, " sample"], sample_rate: int, title: str) -> None:
    mel = MelConfig(sample_rate=sample_rate)
    whole = samples[: len(samples) // mel.hop_length * mel.hop_length]
    cells = np.asarray(log_mel(jnp.asarray(whole)[None], mel))[0].T
    extent = (0, len(whole) / sample_rate, 0, mel.num_mels)
    axis.imshow(cells, aspect="auto", origin="lower", cmap="magma", vmin=cells.max() - 9, extent=extent)
    axis.set_yticks([])
    axis.set_title(title, fontsize=9, loc="left")


if __name__ == "__main__":
    sys.exit(main())
