"""The engine at the paper's size on one accelerator: random weights, forced lengths from a real mix, and the roofline.

Run: uv run python benchmarks/synthesize_paper.py [--requests 512] [--small]
     (`--small` tries the program itself with tiny networks, on a CPU too, and measures nothing)
Bound by: AR steps, each of which reads all weights once and the cache of every row as far as it is filled; NAR passes
by arithmetic. The roofline adds up both at the chip's best, with every slot filled.

The networks are whole but for mT5, which runs twice a request: a tiny encoder stands in its place. Lengths are those of
the embedded voice's training speech, at 30 semantic tokens and 75 frames a second; all guidance branches run.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from full_size import draw

from voxinstruct_jax.audio.codecs import EncodecVocos, EncodecVocosConfig
from voxinstruct_jax.data.shards import ShardReader
from voxinstruct_jax.decoding.engine import Speech, speak_many
from voxinstruct_jax.decoding.memory import default_profile
from voxinstruct_jax.decoding.profile import EngineProfile
from voxinstruct_jax.decoding.requests import ARRequest, Limits
from voxinstruct_jax.decoding.rules import FIXED
from voxinstruct_jax.decoding.sampling import SamplingConfig
from voxinstruct_jax.decoding.stages import Loaded, Models, SpeechRequest
from voxinstruct_jax.guidance import Branch, Guidance
from voxinstruct_jax.layers.dense import cast_kernels
from voxinstruct_jax.models.ar import ARConfig, ARModel
from voxinstruct_jax.models.nar import NARConfig, NARModel
from voxinstruct_jax.sharding.chips import chip_of
from voxinstruct_jax.text.encoder import TextEncoderConfig
from voxinstruct_jax.vocabulary import Vocabulary, build_prompt
from voxinstruct_jax.voice_folder import VoiceConfig

CORPUS = Path(__file__).parents[1] / "corpus" / "train"
CORPUS_RATE, SEMANTIC_RATE, FRAME_RATE = 25, 30, 75
TEXT_TOKENS = 60


def main() -> int:
    """Prints audio seconds a second, and what the chip would allow."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=512, help="requests after the first round (default: 512)")
    parser.add_argument("--small", action="store_true", help="tiny networks: tries the program, measures nothing")
    options = parser.parse_args()
    models = build(small=options.small)
    profile = default_profile(models)
    print(f"device: {jax.devices()[0].device_kind}; lanes: {[dataclasses.astuple(lane) for lane in profile.lanes]}")
    durations = real_durations(options.requests)
    if options.small:
        durations = durations / 20
    speak(models, durations[: 2 * profile.lanes[0].slots], profile)  # compiles
    start = time.perf_counter()
    audio_s = speak(models, durations, profile)
    spent_s = time.perf_counter() - start
    print(f"{audio_s:.1f} s of audio in {spent_s:.1f} s: {audio_s / spent_s:.1f} a second")
    chip = chip_of(jax.devices()[0].device_kind)
    if options.small or chip is None:
        print("tiny networks or no known chip: these figures mean nothing")
        return 0
    ar_s, nar_s = roofline(models, durations, profile, chip)
    best = durations.sum() / (ar_s + nar_s)
    print(f"roofline: AR {ar_s:.1f} s (memory), NAR {nar_s:.1f} s (arithmetic): {best:.0f} audio seconds a second")
    return 0


def build(*, small: bool) -> Models:
    """The three networks with random weights, in bfloat16 unless small."""
    vocabulary, text = Vocabulary(), TextEncoderConfig.tiny((1000,))
    dtype = "float32" if small else "bfloat16"

    def load(model_class: Any, config: Any, seed: int) -> Loaded[Any]:
        config = dataclasses.replace(config, text_encoder=text, dtype=dtype)
        model = draw(lambda: model_class(config, rngs=nnx.Rngs(0)), seed)
        cast_kernels(model, dtype)
        return Loaded(*nnx.split(model), config)

    tiny: dict[str, Any] = {"vocabulary": vocabulary, "channel_sizes": (1000,)}
    codec_config = EncodecVocosConfig()
    codec = draw(lambda: EncodecVocos(codec_config, rngs=nnx.Rngs(0)), 2)
    return Models(
        ar=load(ARModel, ARConfig.tiny(**tiny) if small else ARConfig.paper(), 0),
        nar=load(NARModel, NARConfig.tiny(**tiny) if small else NARConfig.paper(), 1),
        codec=Loaded(*nnx.split(codec), codec_config),
        sampling=SamplingConfig(),
        num_steps=VoiceConfig().num_steps,
        rules=FIXED,
        text_widths=(64, 128),
        prompt_widths=(0,),
        max_frames=20 * FRAME_RATE // (20 if small else 1),
    )


def real_durations(count: int) -> np.ndarray:
    """Seconds of so many clips, drawn from those of real speech, at most 20 s."""
    frames = ShardReader(CORPUS).lengths.frames
    return np.random.default_rng(0).choice(frames, count).clip(2, 20 * CORPUS_RATE) / CORPUS_RATE


def speak(models: Models, durations: np.ndarray, profile: EngineProfile) -> float:
    """Runs the engine on requests of forced length; returns the seconds of audio."""

    def requests() -> Iterator[tuple[int, SpeechRequest]]:
        vocabulary, none = models.ar.config.vocabulary, np.zeros((8, 0), np.int32)
        random = np.random.default_rng(1)
        for seed, duration in enumerate(durations):
            semantic, frames = max(1, int(duration * SEMANTIC_RATE)), max(2, int(duration * FRAME_RATE))
            limits = Limits(
                min_semantic=semantic,
                max_semantic=semantic,
                min_acoustic=frames,
                max_acoustic=frames,
                max_total=10**6,
            )
            request = ARRequest(
                text_tokens=random.integers(1, 1000, (TEXT_TOKENS, 1)).astype(np.int32),
                prompt=build_prompt(vocabulary, "en", none[0], none),
                guidance=Guidance(),
                limits=limits,
                seed=seed,
            )
            yield seed, SpeechRequest(ar=request, prompt_units=none[0], prompt_codes=none)

    spoken = [speech for _, speech in speak_many(models, requests(), profile)]
    assert all(isinstance(speech, Speech) for speech in spoken)
    return sum(speech.codes.shape[1] for speech in spoken if isinstance(speech, Speech)) / FRAME_RATE


def roofline(models: Models, durations: np.ndarray, profile: EngineProfile, chip: Any) -> tuple[float, float]:
    """Seconds that the AR stage needs for its reads and the NAR stage for its products, at the chip's best."""
    backbone = models.ar.config.backbone
    cache = jnp.dtype(profile.dtype(models)).itemsize
    slot_bytes = 2 * backbone.num_layers * backbone.num_kv_heads * backbone.head_dim * cache
    steps = durations * (SEMANTIC_RATE + FRAME_RATE) + 2
    reads = (steps * (TEXT_TOKENS + steps / 2)).sum() * slot_bytes * len(Branch)
    weights = _size(models.ar.state.backbone) * 2
    passes = steps.sum() / min(profile.lanes[0].slots, len(durations))
    ar_s = (reads + passes * weights) / chip.bandwidth
    products = 2 * _size(models.nar.state.backbone) * (TEXT_TOKENS + steps).sum() * sum(models.num_steps)
    return float(ar_s), float(products / chip.flops)


def _size(state: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(state))


if __name__ == "__main__":
    sys.exit(main())
