"""`voxinstruct prepare MANIFEST --out DIR`."""

import argparse
import functools
from pathlib import Path

import numpy as np

from voxinstruct_jax.cli.options import parse

__all__ = ["run"]

FEATURE_SAMPLE_RATE = 16_000


def run(arguments: list[str]) -> int:
    """Prepares a manifest."""
    parser = argparse.ArgumentParser(
        "voxinstruct prepare",
        description="Turn audio and text into token shards; resumable. "
        "Example: voxinstruct prepare corpus/manifest.jsonl --out shards",
    )
    parser.add_argument("manifest", help="JSONL or Parquet; a row: id, audio, language, transcript, instruction(s) ...")
    parser.add_argument("--out", type=Path, required=True, help="folder of shards; goes on where it stopped")
    parser.add_argument("--voice", type=Path, help="voice folder whose codec and units encode (default: embedded)")
    parser.add_argument("--shard-size", type=int, default=500, help="clips a shard (default: 500)")
    options = parse(parser, arguments)
    from voxinstruct_jax.data.manifest import read_manifest
    from voxinstruct_jax.data.prepare import prepare
    from voxinstruct_jax.voice import embedded_release

    rows = read_manifest(options.manifest)
    reader = prepare(rows, options.out, _encoders(options.voice or embedded_release()), shard_size=options.shard_size)
    print(f"{options.out}: {len(reader)} of {len(rows)} clips; what was set aside stands in rejected.jsonl")
    return 0


def _encoders(voice: Path):  # noqa: ANN202 - the type is imported only when the command runs
    """Codec and units of a voice folder, each at its own rate, and the text tokenizer, as `prepare` takes them."""
    from voxinstruct_jax.audio.phone_model import load_phone_model
    from voxinstruct_jax.audio.semantic import FEATURE_RATE
    from voxinstruct_jax.audio.waveform import resample
    from voxinstruct_jax.checkpoints.run import file_checksums
    from voxinstruct_jax.config import fingerprint
    from voxinstruct_jax.data.durations import character_durations
    from voxinstruct_jax.data.prepare import Encoders
    from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
    from voxinstruct_jax.voice import encode_clip, load_codec, open_units

    codec, tokenizer = load_codec(voice / "codec"), PronunciationTokenizer()
    (units, source), phones = open_units(voice), load_phone_model(voice / "units")

    @functools.lru_cache(maxsize=1)
    def features(data: bytes) -> np.ndarray:  # units and durations of a clip are asked for one after the other
        samples = np.frombuffer(data, np.float32)
        return source.features(resample(samples, codec.config.sample_rate, FEATURE_SAMPLE_RATE))

    def frames(samples: np.ndarray) -> int:
        return -(-len(samples) // codec.config.hop_length)

    def semantic(samples: np.ndarray) -> np.ndarray:
        found = features(samples.tobytes())
        return units.follow(found, codec_rate=codec.config.frame_rate, frames=frames(samples))

    def durations(samples: np.ndarray, transcript: str) -> np.ndarray | None:
        assert phones is not None
        return character_durations(phones, tokenizer, features(samples.tobytes()), transcript, frames(samples))

    return Encoders(
        acoustic=lambda samples: encode_clip(codec, samples),
        semantic=semantic,
        # they are counted in half frames of the codec, which must then be those of the features
        durations=durations if phones is not None and 2 * codec.config.frame_rate == FEATURE_RATE else None,
        tokenizer=tokenizer,
        sample_rate=codec.config.sample_rate,
        frame_rate=codec.config.frame_rate,
        semantic_rate=units.frame_rate,
        fingerprints={part: fingerprint(file_checksums(voice / part / "weights")) for part in ("codec", "units")},
    )
