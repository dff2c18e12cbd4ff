"""Codec latents and sound from a trained `CodecFlow`: what it makes of semantic units, or of the first codebook.

`speak_frames` is what stands behind an AR model in place of its acoustic tokens and the NAR model. What a request
becomes follows from the request and the number of rows, which see nothing of one another. Read `FrameRequest`.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int, Int32

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.code_batches import units_of_frames
from voxinstruct_jax.diffusion.denoiser import make_denoiser
from voxinstruct_jax.diffusion.path import Path
from voxinstruct_jax.diffusion.solvers import draw_noise, sample
from voxinstruct_jax.diffusion.speech import hold_last
from voxinstruct_jax.diffusion.systems import DiffusionConfig
from voxinstruct_jax.layers.operations import count_operations
from voxinstruct_jax.models.codec_flow import CodecFlow
from voxinstruct_jax.models.conditions import Conditions

__all__ = ["FrameRequest", "codec_latents", "frames_operations", "speak_frames", "speak_units"]

FRAME_BLOCK, TEXT_BLOCK = 50, 64
"""Programs are compiled for multiples of these, so that they are few."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameRequest:
    """What is to be spoken, frame by frame, on the host."""

    units: Int32[np.ndarray, " frame"]
    """From 1; not read by a model that knows none."""
    first_codes: Int32[np.ndarray, " frame"]
    """Of the first codebook; not read by a model that is not given it."""
    text_tokens: Int32[np.ndarray, "token feature"]
    """Of the instruction; of length 0 = none."""
    seed: int

    @property
    def sizes(self) -> tuple[int, int]:
        """Frames and text tokens of the program that it takes."""
        frames, tokens = len(self.units), max(len(self.text_tokens), 1)
        return -(-frames // FRAME_BLOCK) * FRAME_BLOCK, -(-tokens // TEXT_BLOCK) * TEXT_BLOCK


def codec_latents(
    model: CodecFlow,
    config: DiffusionConfig,
    units: Int[Array, "batch time"],
    first_codes: Int[Array, "batch time"],
    text_tokens: Int[Array, "batch token feature"],
    frame_mask: Bool[Array, "batch time"],
    keys: Array,
) -> Float[Array, "batch time channel"]:
    """Draws latents.

    Args:
        model: Trained.
        config: Path, guidance and solver.
        units: As `CodecFlow.conditions`.
        first_codes: As `CodecFlow.conditions`.
        text_tokens: As `CodecFlow.conditions`.
        frame_mask: True = a real frame.
        keys: One a row.
    """
    prior = model.prior(first_codes)
    path, conditions = Path(config.path, prior), model.conditions(units, first_codes, text_tokens)

    def backbone(
        x: Float[Array, "batch time channel"],
        t: Float[Array, " batch"],
        conditions: Conditions,
        frame_mask: Bool[Array, "batch time"],
    ) -> Float[Array, "batch time channel"]:
        return model.predict(x, t, conditions, frame_mask, prior)

    denoiser = make_denoiser(backbone, path, conditions, frame_mask, config.guidance)
    noise = draw_noise(keys, units.shape[1], model.config.network.latent_channels)
    return sample(denoiser, path, noise, config.sampler, keys=keys)


def speak_units(
    model: CodecFlow,
    config: DiffusionConfig,
    semantic_tokens: Int[np.ndarray, " run"],
    run_lengths: Int[np.ndarray, " length"],
    text_tokens: Int[np.ndarray, "token feature"],
    *,
    first_codes: Int[np.ndarray, " frame"] | None = None,
    seed: int = 0,
) -> Float32[np.ndarray, " sample"]:
    """Speaks semantic tokens; the same arguments give the same samples.

    Args:
        model: Trained.
        config: Path, guidance and solver.
        semantic_tokens: From 0, de-duplicated or not.
        run_lengths: Codec frames that each lasts.
        text_tokens: Of the instruction; of length 0 = none.
        first_codes: Of the first codebook, one a frame, where the model is given it.
        seed: All randomness follows from it.

    Returns:
        Waveform at the codec's sample rate, its hop length for each frame.

    Raises:
        InputError: Tokens and lengths do not fit one another, tokens are none that the model knows, or the first
            codebook is missing.
    """
    known, frames = model.config.num_units, int(np.sum(run_lengths))
    units = units_of_frames(semantic_tokens, run_lengths, frames)
    if known and (units.min() < 1 or units.max() > known):
        raise InputError(f"semantic tokens run from {units.min() - 1} to {units.max() - 1}; this model knows {known}")
    if model.config.first_codebook and (first_codes is None or len(first_codes) != frames):
        raise InputError(f"this model begins at the first codebook; give its {frames} codes as first_codes")
    first = np.zeros(frames) if first_codes is None else first_codes
    columns = {"units": units, "first_codes": first, "text_tokens": text_tokens}
    request = FrameRequest(**{name: np.asarray(column, np.int32) for name, column in columns.items()}, seed=seed)
    return speak_frames(*nnx.split(model), config, [request], batch_size=1)[0]


def speak_frames(
    graph: Any, state: Any, config: DiffusionConfig, requests: Sequence[FrameRequest], *, batch_size: int
) -> list[Float32[np.ndarray, " _"]]:
    """Speaks requests of one size; the same request and `batch_size` give the same samples, whatever the others are.

    Args:
        graph: Of a trained `CodecFlow`.
        state: Its arrays.
        config: Path, guidance and solver.
        requests: As many as `batch_size`, or fewer.
        batch_size: Rows of the program.

    Returns:
        Waveforms at the codec's sample rate, its hop length for each frame.
    """
    samples = np.asarray(_speak(graph, state, config, *_stacked(requests, batch_size)), np.float32)
    hop = samples.shape[1] // requests[0].sizes[0]
    return [row[: len(request.units) * hop] for request, row in zip(requests, samples, strict=False)]


def frames_operations(graph: Any, state: Any, config: DiffusionConfig, request: FrameRequest) -> float:
    """Multiplications and additions of products that `speak_frames` takes for one request, padding included."""
    program = functools.partial(_speak, graph)
    return count_operations(lambda state, rows: program(state, config, *rows), state, _stacked([request], 1))


def _stacked(requests: Sequence[FrameRequest], batch_size: int) -> tuple[Any, ...]:
    """Rows of a program, the last one repeated."""
    rows = [*requests, *list(requests[-1:]) * (batch_size - len(requests))]
    frames, tokens = rows[0].sizes
    return (
        np.stack([np.pad(row.units, (0, frames - len(row.units))) for row in rows]),
        np.stack([np.pad(row.first_codes, (0, frames - len(row.units))) for row in rows]),
        np.stack([np.pad(row.text_tokens, ((0, tokens - len(row.text_tokens)), (0, 0))) for row in rows]),
        np.array([len(row.units) for row in rows], np.int32),
        jnp.stack([jax.random.key(row.seed) for row in rows]),
    )


@functools.partial(jax.jit, static_argnums=(0, 2))
def _speak(  # noqa: PLR0913 - the flat arguments of a program
    graph: Any,
    state: Any,
    config: DiffusionConfig,
    units: Int32[Array | np.ndarray, "batch time"],
    first: Int32[Array | np.ndarray, "batch time"],
    text: Int32[Array | np.ndarray, "batch token feature"],
    num_frames: Int32[Array | np.ndarray, " batch"],
    keys: Array,
) -> Float[Array, "batch sample"]:
    model, frames = nnx.merge(graph, state), jnp.arange(units.shape[1])
    mask = frames < num_frames[:, None]
    units, first, text = (jnp.asarray(part) for part in (units, first, text))
    latents = codec_latents(model, config, units, first, text, mask, keys)
    return model.waveform(hold_last(latents, jnp.asarray(num_frames)))
