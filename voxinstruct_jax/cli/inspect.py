"""`voxinstruct inspect PATH`: says what a file or folder of the project holds."""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from voxinstruct_jax.cli.options import parse_known
from voxinstruct_jax.config import ConfigError, InputError

__all__ = ["describe", "run"]

SECONDS_AN_HOUR = 3600
DAMAGED = 1
BLOCKS = " ▁▂▃▄▅▆▇█"
MAX_COUNTED = 100_000
"""Records of a shard folder whose tokens are counted, evenly spread; of fewer all are."""


def run(arguments: list[str]) -> int:
    """Describes a path."""
    parser = argparse.ArgumentParser(
        "voxinstruct inspect",
        description="Say what a manifest, request file, shard folder, weights, voice, training run, result folder or "
        "configuration holds. Example: voxinstruct inspect configs/instruct_ar_small.py",
    )
    parser.add_argument("path", type=_local, help="file or folder; of shards also a URL")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.add_argument("--batch", type=int, metavar="STEP", help="of a configuration: the batch of this step, from 0")
    parser.add_argument(
        "--html", type=Path, metavar="FOLDER", help="of a manifest, shards or a batch: a page to listen"
    )
    parser.add_argument("--examples", type=int, default=12, metavar="N", help="clips on the page (default: 12)")
    parser.add_argument("--voice", type=Path, metavar="FOLDER", help="whose codec speaks them (default: the embedded)")
    options, rest = parse_known(parser, arguments)
    if rest and options.batch is None:
        raise ConfigError(f"unknown argument {rest[0]}; see --help")
    if options.examples < 0 or (options.batch or 0) < 0:
        raise ConfigError("--examples and --batch must be at least 0")
    from voxinstruct_jax.cli.data_pages import describe_batch, write_page

    in_batch = options.batch is not None
    found = describe_batch(options.path, options.batch, rest) if in_batch else describe(options.path)
    if options.html is not None:
        page = write_page(found, options, rest)
        found["page"] = str(page)
    if options.json:
        print(json.dumps(found, ensure_ascii=False, indent=1))
    else:
        print("\n".join(_lines(found)))
    return DAMAGED if found.get("damage") else 0


def _local(path: str) -> Path:
    """The path, or where shards from a store lie on this machine."""
    from voxinstruct_jax.data.shards import ShardReader
    from voxinstruct_jax.data.store import is_remote

    return ShardReader(path).fetch() if is_remote(path) else Path(path)


def describe(path: Path) -> dict[str, Any]:
    """Returns what a path holds; `kind` says what it is, `damage` (if any) what is wrong with it.

    Raises:
        ConfigError: It does not exist, or is nothing that this project knows.
        InputError: It cannot be read.
    """
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder")
    kind = _kind_of_folder(path) if path.is_dir() else _kind_of_file(path)
    if kind is None:
        raise ConfigError(f"{path}: not a kind this command knows; it reads {', '.join(_DESCRIBERS)}")
    try:
        return {"path": str(path), "kind": kind, **_DESCRIBERS[kind](path)}
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError) as error:
        raise InputError(f"{path}: looks like {kind}, but is damaged ({error})") from error


def _kind_of_folder(path: Path) -> str | None:
    marks = {
        "voice.json": "voice",
        "run.json": "training run",
        "index.json": "shards",
        "job.json": "results",
        "results.parquet": "results",
        "config.json": "weights",
    }
    return next((kind for name, kind in marks.items() if (path / name).is_file()), None)


def _kind_of_file(path: Path) -> str | None:
    """By suffix, and by the columns of the first rows: all kinds of tables may be JSON lines or Parquet."""
    if path.suffix == ".py":
        return "configuration"
    if path.suffix not in (".jsonl", ".json", ".parquet"):
        return None
    columns = _columns(path)
    if {"status", "finish_reason"} <= columns:
        return "results"
    if "audio" in columns:
        return "manifest"
    return "requests" if "instruction" in columns else None


def _columns(path: Path) -> set[str]:
    """Names in a Parquet schema, or in the first lines that are JSON objects."""
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        try:
            return set(pyarrow.parquet.read_schema(path).names)
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{path}: no valid Parquet ({str(error).splitlines()[0]})") from error
    found: set[str] = set()
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line, _ in zip(lines, range(100), strict=False):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            found |= set(record) if isinstance(record, dict) else set()
    return found


def _manifest(path: Path) -> dict[str, Any]:
    from voxinstruct_jax.data.manifest import Rejection, iter_manifest
    from voxinstruct_jax.data.statistics import Tally

    rejected: list[Rejection] = []
    tally, speakers, rows, with_instructions = Tally(), set(), 0, 0
    for row in iter_manifest(path, rejected=rejected):
        rows += 1
        speakers.add(row.speaker)
        with_instructions += bool(row.instructions)
        seconds = row.duration_s if row.duration_s is not None else _clip_s(row.audio, row.offset_s)
        tally.add(row.language, row.transcript, seconds)
    counted = tally.summary()
    return {
        "rows": rows,
        "hours": counted["hours"],
        "without_readable_audio": tally.without_duration,
        "languages": counted["languages"],
        "speakers": len(speakers - {""}),
        "with_instructions": with_instructions,
        "histograms": counted["histograms"],
        **_rejections(rejected),
    }


def _clip_s(audio: str, offset_s: float) -> float | None:
    """Seconds from the offset to the end of a local file; None if it cannot be read."""
    import soundfile

    try:
        return max(soundfile.info(audio).duration - offset_s, 0.0)
    except (RuntimeError, OSError):
        return None


def _requests(path: Path) -> dict[str, Any]:
    from voxinstruct_jax.jobs.requests import read_requests

    requests, rejected = read_requests(path)
    return {
        "requests": len(requests),
        "languages": _counts(request.language or "to be predicted" for request in requests),
        "with_prompt": sum(request.prompt is not None for request in requests),
        "with_seed": sum(request.seed is not None for request in requests),
        **_rejections(rejected),
    }


def _rejections(rejected: list[Any]) -> dict[str, Any]:
    return {"rejected": len(rejected), "first_rejections": [f"row {row.row}: {row.reason}" for row in rejected[:5]]}


def _results(path: Path) -> dict[str, Any]:
    from voxinstruct_jax.jobs.plan import REJECTED_FILE
    from voxinstruct_jax.jobs.results import PARTS_FOLDER, RESULTS_FILE, iter_results
    from voxinstruct_jax.jobs.run import JOB_FILE

    about: dict[str, Any] = {"complete": True}
    if path.is_dir():
        about["complete"] = (path / RESULTS_FILE).is_file()
        if (path / JOB_FILE).is_file():
            about["job"] = json.loads((path / JOB_FILE).read_text(encoding="utf-8"))
        if (path / REJECTED_FILE).is_file():
            about["rejected"] = len((path / REJECTED_FILE).read_text(encoding="utf-8").splitlines())
        if not about["complete"] and not any((path / PARTS_FOLDER).glob("*")):
            return {**about, "results": 0}
    counts: dict[str, Counter[str]] = {
        name: Counter() for name in ("status", "finish_reasons", "languages_predicted", "checks")
    }
    seconds = 0.0
    for result in iter_results(str(path)):
        counts["status"][result.status] += 1
        counts["finish_reasons"][result.finish_reason] += 1
        counts["languages_predicted"].update([result.language_predicted] if result.language_predicted else [])
        counts["checks"].update(result.checks)
        seconds += result.duration_s or 0.0
    return {
        **about,
        "results": counts["status"].total(),
        **{name: dict(found.most_common()) for name, found in counts.items()},
        "hours": round(seconds / SECONDS_AN_HOUR, 4),
    }


def _shards(path: Path) -> dict[str, Any]:
    from voxinstruct_jax.data.shards import ShardReader
    from voxinstruct_jax.data.statistics import Tally

    try:
        reader = ShardReader(path)
        reader.verify()
        tally = Tally()
        for record in range(0, len(reader), max(1, len(reader) // MAX_COUNTED)):
            tally.add_example(reader[record], reader.index.frame_rate)
    except InputError as error:
        return {"checksums_ok": False, "damage": str(error)}
    index, counted = reader.index, tally.summary()
    return {
        "records": index.num_examples,
        "hours": round(index.hours, 4),
        "languages": dict(index.languages),
        "shards": len(index.shards),
        "megabytes": round(sum(shard.num_bytes for shard in index.shards) / 1e6, 2),
        "frame_rate": index.frame_rate,
        "semantic_rate": index.semantic_rate or index.frame_rate,
        "num_codebooks": index.num_codebooks,
        "fingerprints": dict(index.fingerprints),
        "fingerprint": reader.fingerprint,
        "checksums_ok": True,
        "counted_records": counted["clips"],
        "semantic_tokens": counted["semantic_tokens"],
        "codebooks": counted["codebooks"],
        "histograms": counted["histograms"],
    }


def _weights(path: Path) -> dict[str, Any]:
    from voxinstruct_jax.checkpoints.weights import load_weights, read_settings

    settings = read_settings(path)
    by_part = {str(name): _count_described(part) for name, part in settings["arrays"].items()}
    about: dict[str, Any] = {
        "model_kind": settings.get("kind", "unknown"),
        "step": settings.get("step"),
        "megabytes": round(sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6, 2),
        "parameters": {"total": sum(by_part.values()), "by_part": by_part},
        "settings": {name: value for name, value in settings.items() if name not in ("arrays", "kind", "step")},
    }
    try:
        load_weights(path)
    except InputError as error:
        return {**about, "checksums_ok": False, "damage": str(error)}
    return {**about, "checksums_ok": True}


def _count_described(described: Any) -> int:
    if isinstance(described.get("dtype"), str):
        return _product(described["shape"])
    return sum(_count_described(value) for value in described.values())


VOICE_PARTS = ("codec", "units", "hubert", "text_encoder", "ar", "nar", "flow", "denoiser", "vocoder")


def _voice(path: Path) -> dict[str, Any]:
    parts = {part: _weights(path / part) for part in VOICE_PARTS if (path / part).is_dir()}
    damage = [part["damage"] for part in parts.values() if "damage" in part]
    return {
        "parameters": {
            "total": sum(part["parameters"]["total"] for part in parts.values()),
            "by_part": {name: part["parameters"]["total"] for name, part in parts.items()},
        },
        "megabytes": round(sum(part["megabytes"] for part in parts.values()), 2),
        "steps": {name: part["step"] for name, part in parts.items() if part["step"] is not None},
        "checksums_ok": not damage,
        "settings": json.loads((path / "voice.json").read_text(encoding="utf-8")),
        **({"damage": damage[0]} if damage else {}),
    }


def _training_run(path: Path) -> dict[str, Any]:
    from voxinstruct_jax.checkpoints.run import RunStore
    from voxinstruct_jax.training.events import goodput, read_events

    identity = json.loads((path / "run.json").read_text(encoding="utf-8"))
    settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
    whole: list[int] = []
    if (path / "states").is_dir():
        store = RunStore(path / "states")
        whole = store.whole_steps()
        store.close()
    metrics = _last_metrics(path / "metrics.jsonl")
    return {
        "run_kind": identity.get("kind", "unknown"),
        "step": metrics.get("step", 0),
        "steps": settings.get("train", {}).get("steps"),
        "metrics": metrics,
        "whole_states": whole,
        "goodput": {name: round(share, 4) for name, share in goodput(read_events(path)).items()},
        "identity": identity,
    }


def _last_metrics(path: Path) -> dict[str, Any]:
    """The last whole row; a kill may have torn the one behind it."""
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    whole = [line for line in lines if line.endswith(b"\n")]
    return json.loads(whole[-1]) if whole else {}


def _configuration(path: Path) -> dict[str, Any]:
    from voxinstruct_jax.cli.experiments import load_experiment
    from voxinstruct_jax.config import to_dict

    experiment = load_experiment(str(path))
    about = {"experiment": type(experiment).__name__}
    build = _builder(experiment)
    counted = {} if build is None else {"parameters": _count_parameters(build)}
    return {**about, **counted, "settings": to_dict(experiment)}


def _builder(experiment: Any) -> Callable[[Any], Any] | None:
    """What makes the model of an experiment from `nnx.Rngs`; None where there is none to make (units)."""
    from voxinstruct_jax.audio.codec import CodecConfig, MelCodec
    from voxinstruct_jax.audio.mel_vae import MelVAE, MelVAEConfig
    from voxinstruct_jax.audio.vocos import MelVocoder, MelVocoderConfig
    from voxinstruct_jax.models.ar import ARConfig, ARModel
    from voxinstruct_jax.models.codec_flow import CodecFlow, CodecFlowConfig
    from voxinstruct_jax.models.grad_tts import GradTTS, GradTTSConfig
    from voxinstruct_jax.models.masked_latents import MaskedLatents, MaskedLatentsConfig
    from voxinstruct_jax.models.mmdit import MMDiT, MMDiTConfig
    from voxinstruct_jax.models.nar import NARConfig, NARModel

    match config := getattr(experiment, "model", None):
        case ARConfig():
            return lambda rngs: ARModel(config, rngs=rngs)
        case NARConfig():
            return lambda rngs: NARModel(config, rngs=rngs)
        case CodecConfig():
            return lambda rngs: MelCodec(config, rngs=rngs)
        case MMDiTConfig():
            return lambda rngs: MMDiT(config, rngs=rngs)
        case CodecFlowConfig():
            return lambda rngs: CodecFlow(config, rngs=rngs)
        case GradTTSConfig():
            return lambda rngs: GradTTS(config, rngs=rngs)
        case MaskedLatentsConfig():
            return lambda rngs: MaskedLatents(config, rngs=rngs)
        case MelVAEConfig():
            return lambda rngs: MelVAE(config, rngs=rngs)
        case MelVocoderConfig():
            return lambda rngs: MelVocoder(config, rngs=rngs)
    return None


def _count_parameters(build: Callable[[Any], Any]) -> dict[str, Any]:
    """Counts a model's numbers exactly, without making them.

    Returns:
        `total`; of it `trainable`, `frozen` (a pretrained text encoder) and `state` (moved without gradients, such as
        codebooks), `without_frozen`, and `by_part`, the total of each part of the model.
    """
    from flax import nnx

    from voxinstruct_jax.layers.parameter import FrozenParam

    by_part: Counter[str] = Counter()
    by_kind: Counter[str] = Counter()
    for path, variable in nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: build(nnx.Rngs(0))))):
        size = _product(variable.get_value().shape)
        by_part[str(path[0])] += size
        frozen = isinstance(variable, FrozenParam)
        by_kind["frozen" if frozen else "trainable" if isinstance(variable, nnx.Param) else "state"] += size
    total = sum(by_part.values())
    return {
        "total": total,
        "trainable": by_kind["trainable"],
        "frozen": by_kind["frozen"],
        "state": by_kind["state"],
        "without_frozen": total - by_kind["frozen"],
        "by_part": dict(by_part),
    }


def _product(shape: Iterable[int]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


_DESCRIBERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "manifest": _manifest,
    "requests": _requests,
    "shards": _shards,
    "weights": _weights,
    "voice": _voice,
    "training run": _training_run,
    "results": _results,
    "configuration": _configuration,
}


def _lines(value: Any, indent: str = "") -> Iterable[str]:
    """Nested values as `name: value` lines."""
    for name, item in value.items():
        label = f"{indent}{name.replace('_', ' ')}:"
        if name == "histograms":
            yield label
            yield from _bars(item, indent + "  ")
        elif isinstance(item, dict) and item:
            yield label
            yield from _lines(item, indent + "  ")
        elif isinstance(item, list) and item and isinstance(item[0], dict):
            yield label
            for number, each in enumerate(item, 1):
                yield f"{indent}  {number}: " + ", ".join(f"{key} {value}" for key, value in each.items())
        elif isinstance(item, list | tuple):
            yield f"{label} {', '.join(map(str, item)) or '-'}"
        elif isinstance(item, int) and not isinstance(item, bool):
            yield f"{label} {item:,}"
        else:
            yield f"{label} {'-' if item in (None, {}) else item}"


def _bars(histograms: dict[str, Any], indent: str) -> Iterable[str]:
    """A line a trait: range, median bin, and the shape in eighth blocks."""
    for name, found in histograms.items():
        totals = [sum(column) for column in zip(*found["counts"].values(), strict=True)]
        filled = [place for place, count in enumerate(totals) if count]
        if not filled:
            continue
        first, last = filled[0], filled[-1]
        shape = "".join(BLOCKS[-(-8 * count // max(totals))] for count in totals[first : last + 1])
        edges = found["edges"]
        yield f"{indent}{name.replace('_', ' ')}: {edges[first]:g} {shape} {edges[last + 1]:g} {found['unit']}"
