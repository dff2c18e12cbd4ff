"""`voxinstruct prepare MANIFEST --out DIR`."""

import argparse
import functools
import json
import posixpath
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from voxinstruct_jax.cli.options import parse
from voxinstruct_jax.config import ConfigError, InputError

__all__ = ["run"]

FEATURE_SAMPLE_RATE = 16_000
ACCELERATOR_BATCH_S = 320.0
"""Sound that an accelerator encodes at once; a CPU is as fast with one clip at a time."""
LEAST_AGREEMENT = 0.999


def run(arguments: list[str]) -> int:
    """Prepares a manifest."""
    parser = argparse.ArgumentParser(
        "voxinstruct prepare",
        description="Turn audio and text into token shards; resumable. "
        "Example: voxinstruct prepare corpus/manifest.jsonl --out shards",
    )
    parser.add_argument("manifest", help="JSONL or Parquet; a row: id, audio, language, transcript, instruction(s) ...")
    parser.add_argument("--out", help="folder of shards, or a URL such as s3://…; goes on where it stopped")
    parser.add_argument("--voice", type=Path, help="voice folder whose codec and units encode (default: embedded)")
    parser.add_argument(
        "--tokenizer",
        default="",
        help="mT5's spiece.model or tokenizer.json, for models of the paper's size; no durations",
    )
    parser.add_argument(
        "--recount",
        action="store_true",
        help="MANIFEST is a folder of shards: count its text for --tokenizer, in place",
    )
    parser.add_argument("--shard-size", type=int, default=500, help="clips a shard (default: 500)")
    parser.add_argument(
        "--workers", type=int, help="processes, each on one core (default: one a core; 1 on an accelerator)"
    )
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="this machine, or a Ray cluster")
    parser.add_argument("--ray-address", default="auto", help="of the cluster: auto, HOST:PORT, ray://... or local")
    parser.add_argument("--gpus-per-task", type=float, default=0.0, help="GPUs that a task on Ray holds (default: 0)")
    parser.add_argument(
        "--check-agreement",
        type=int,
        metavar="CLIPS",
        help="encode so many clips here and on the CPU, print the share of equal codes, and leave",
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    options = parse(parser, arguments)
    if [options.out is not None, options.check_agreement is not None, options.recount].count(True) != 1:
        raise ConfigError("give one of --out, --check-agreement and --recount")
    if options.recount:
        return _recount(Path(options.manifest), options.tokenizer)
    numbers = (options.shard_size, options.workers, options.check_agreement)
    if any(number is not None and number < 1 for number in numbers):
        raise ConfigError("--shard-size, --workers and --check-agreement must be at least 1")
    from voxinstruct_jax.voice_folder import embedded_release

    voice = options.voice or embedded_release()
    if options.check_agreement:
        return _check_agreement(options, voice)
    try:
        result = _prepare(options, voice)
    except KeyboardInterrupt:
        raise InputError(f"{options.out}: stopped; run the same command again to go on") from None
    print(json.dumps(result, ensure_ascii=False) if options.json else _describe(options.out, result))
    return 0


def _recount(folder: Path, tokenizer: str) -> int:
    from voxinstruct_jax.data.prepare import recount_text
    from voxinstruct_jax.text.subword import open_tokenizer

    reader = recount_text(folder, open_tokenizer(tokenizer))
    print(f"{folder}: text of {len(reader)} clips counted anew")
    return 0


def _prepare(options: argparse.Namespace, voice: Path) -> dict[str, Any]:
    from voxinstruct_jax.data import store
    from voxinstruct_jax.data.manifest import ManifestRows
    from voxinstruct_jax.data.prepare import prepare

    rows, encoders = ManifestRows(options.manifest), _encoders(voice, options.tokenizer)
    reader = prepare(
        rows,
        options.out,
        encoders,
        engine=_engine(options, voice),
        shard_size=options.shard_size,
        rejected=rows.rejected,
        progress=not options.json,
    )
    _carry_bins(posixpath.dirname(options.manifest), options.out)
    rejected = store.read(store.join(options.out, "rejected.jsonl")).splitlines()
    kinds = Counter(_kind(json.loads(line)["reason"]) for line in rejected)
    return {
        "clips": len(reader),
        "hours": reader.index.hours,
        "languages": reader.index.languages,
        "shards": len(reader.index.shards),
        "bytes": sum(shard.num_bytes for shard in reader.index.shards),
        "rejected": dict(kinds.most_common()),
        "fingerprint": reader.fingerprint,
    }


def _carry_bins(source: str, out: str) -> None:
    """Puts the manifest's boundaries, if it has any, beside the shards."""
    from voxinstruct_jax.data import store
    from voxinstruct_jax.judges.bins import carry_bins

    with store.staged(out) as place:
        if not store.is_remote(source):
            carry_bins(Path(source), place)
        elif "bins.json" in store.names(source):
            with tempfile.TemporaryDirectory() as here:
                store.write(store.join(here, "bins.json"), store.read(store.join(source, "bins.json")))
                carry_bins(Path(here), place)


def _engine(options: argparse.Namespace, voice: Path):  # noqa: ANN202 - the type is imported only when the command runs
    """Where shards are made; None = in this process."""
    import jax

    from voxinstruct_jax.data.workers import count_cores, in_processes

    if options.engine == "ray":
        from voxinstruct_jax.data.ray_engine import on_ray

        places = str(voice.resolve()), options.tokenizer and str(Path(options.tokenizer).resolve())
        return on_ray(_encoders, *places, address=options.ray_address, gpus_per_task=options.gpus_per_task)
    if options.workers is None and jax.default_backend() != "cpu":
        return None
    workers = options.workers or count_cores()
    return in_processes(
        functools.partial(_encoders, voice, options.tokenizer), workers, say=lambda line: print(line, file=sys.stderr)
    )


def _kind(reason: str) -> str:
    """What stands in a reason besides names and numbers."""
    text = re.sub(r"^.*?\.\w{1,5}: ", "", reason)
    return re.sub(r"\d+(\.\d+)?", "N", re.split(r"[;:(]", text)[0].strip())


def _describe(out: str, result: dict[str, Any]) -> str:
    languages = ", ".join(f"{count} {name}" for name, count in result["languages"].items())
    lines = [
        f"{out}: {result['clips']} clips ({languages}), {result['hours']:.2f} h in {result['shards']} shards, "
        f"{result['bytes'] / 1e6:.1f} MB"
    ]
    if result["rejected"]:
        lines.append(f"set aside: {sum(result['rejected'].values())}, listed in {out.rstrip('/')}/rejected.jsonl")
        lines += [f"{count:8} {kind}" for kind, count in result["rejected"].items()]
    return "\n".join(lines)


def _check_agreement(options: argparse.Namespace, voice: Path) -> int:
    """Compares batches on this device with one clip at a time on the CPU."""
    import itertools

    import jax

    from voxinstruct_jax.data.agreement import compare_codes
    from voxinstruct_jax.data.clips import read_clip
    from voxinstruct_jax.data.manifest import iter_manifest

    rows = itertools.islice(iter_manifest(options.manifest), options.check_agreement)
    try:
        cpu = jax.devices("cpu")[0]
    except RuntimeError as error:
        raise InputError(f"JAX sees no CPU here ({error}); leave cpu in JAX_PLATFORMS") from error
    here = _encoders(voice, batch_s=ACCELERATOR_BATCH_S)
    clips = [read_clip(row, here.sample_rate) for row in rows]
    with jax.default_device(cpu):
        there = _encoders(voice, batch_s=0.0)
    result = compare_codes(clips, here, there, other_device=lambda: jax.default_device(cpu))
    result |= {"device": jax.devices()[0].device_kind}
    share = f"{result['codes']:.4%} of codes and {result['units']:.4%} of units"
    line = f"{len(clips)} clips, {result['frames']} frames: {share} are those of the CPU"
    print(json.dumps(result) if options.json else line)
    return 0 if all(float(result[name]) >= LEAST_AGREEMENT for name in ("codes", "units")) else 1


def _encoders(voice: str | Path, tokenizer: str = "", batch_s: float | None = None):  # noqa: ANN202 - imported only when the command runs
    """Codec and units of a voice folder, each at its own rate, and the text tokenizer, as `prepare` takes them."""
    import jax

    from voxinstruct_jax.audio.phone_model import load_phone_model
    from voxinstruct_jax.audio.semantic import FEATURE_RATE
    from voxinstruct_jax.audio.waveform import resample
    from voxinstruct_jax.checkpoints.run import file_checksums
    from voxinstruct_jax.config import fingerprint
    from voxinstruct_jax.data.durations import character_durations
    from voxinstruct_jax.data.prepare import BatchResults, Encoders
    from voxinstruct_jax.text.subword import open_tokenizer
    from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
    from voxinstruct_jax.voice_folder import codes_fingerprint, encode_clips, load_codec, open_units

    voice = Path(voice)
    codec, characters = load_codec(voice / "codec"), PronunciationTokenizer()
    (units, source), phones = open_units(voice), load_phone_model(voice / "units")
    rate = codec.config.sample_rate
    codes = BatchResults(lambda clips, size: encode_clips(codec, clips, size))
    features = BatchResults(
        lambda clips, size: source.features_of([resample(clip, rate, FEATURE_SAMPLE_RATE) for clip in clips], size)
    )

    def encode_ahead(clips: Sequence[np.ndarray], batch_size: int) -> None:
        codes.fill(clips, batch_size)
        features.fill(clips, batch_size)

    def frames(samples: np.ndarray) -> int:
        return -(-len(samples) // codec.config.hop_length)

    def semantic(samples: np.ndarray) -> np.ndarray:
        return units.follow(features(samples), codec_rate=codec.config.frame_rate, frames=frames(samples))

    def durations(samples: np.ndarray, transcript: str) -> np.ndarray | None:
        assert phones is not None
        return character_durations(phones, characters, features(samples), transcript, frames(samples))

    if batch_s is None:
        batch_s = 0.0 if jax.default_backend() == "cpu" else ACCELERATOR_BATCH_S
    # They are those of characters, counted in half frames of the codec, which must then be those of the features.
    timed = not tokenizer and phones is not None and 2 * codec.config.frame_rate == FEATURE_RATE
    return Encoders(
        acoustic=codes,
        semantic=semantic,
        durations=durations if timed else None,
        tokenizer=open_tokenizer(tokenizer),
        sample_rate=rate,
        frame_rate=codec.config.frame_rate,
        semantic_rate=units.frame_rate,
        fingerprints={
            "codec": codes_fingerprint(codec),
            "units": fingerprint(file_checksums(voice / "units" / "weights")),
        },
        encode_ahead=encode_ahead,
        batch_s=batch_s,
    )
