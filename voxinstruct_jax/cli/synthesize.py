"""`voxinstruct synthesize --instruction TEXT | --requests FILE --out DIR`."""

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxinstruct_jax.cli.options import parse
from voxinstruct_jax.config import ConfigError, InputError, to_dict

if TYPE_CHECKING:
    from voxinstruct_jax.jobs.progress import Progress
    from voxinstruct_jax.jobs.run import Engine
    from voxinstruct_jax.jobs.store import Store
    from voxinstruct_jax.voices import AnyVoice

__all__ = ["job_bar", "open_voice", "run"]

EXAMPLE = """example: voxinstruct synthesize --instruction 'A cheerful girl says quickly: "We won!"' --out won.wav
         voxinstruct synthesize --requests requests.jsonl --out results"""
SOUND_SUFFIXES = (".wav", ".flac", ".ogg", ".opus")
OTHER_SOUND_SUFFIXES = (".mp3", ".m4a", ".aac")
MANY_REQUESTS = (
    "workers", "threads", "engine", "ray_address", "gpus_per_worker", "unit_size", "format", "shards", "loudness_lufs",
    "attempts", "candidates", "max_wer", "min_similarity", "price_per_hour",
)  # fmt: skip
"""Options of `--requests`."""
MOST_PRINTED = 1000
"""Results that `--json` prints; of a larger job it prints figures alone."""
ONE_REQUEST = ("prompt", "prompt_transcript", "transcript", "language", "guidance", "max_duration_s")
"""Options of `--instruction`; in a request file they are columns."""
DEFAULT_NAME = "speech.wav"
DTYPES = ("float32", "bfloat16")
SOME_FAILED = 1


def run(arguments: list[str]) -> int:
    """Speaks one instruction, or a file of requests."""
    options = parse(_parser(), arguments)
    if (options.instruction is None) == (options.requests is None):
        raise ConfigError("give either --instruction TEXT or --requests FILE; see --help")
    with contextlib.ExitStack() as stack:
        if options.json:  # nothing but the result may stand on the standard output
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        found, code = _speak_one(options) if options.requests is None else _speak_file(options)
    if options.json:
        print(json.dumps(found, ensure_ascii=False))
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "voxinstruct synthesize",
        description="Speak one instruction, or a file of requests.",
        epilog=EXAMPLE,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--instruction", help="how and what to speak, the words to be spoken in quotes")
    parser.add_argument("--requests", help="JSONL or Parquet; a row: id, instruction, language? seed? ...")
    parser.add_argument(
        "--out", required=True, help="a folder; for one also a .wav, .flac, .ogg or .opus file, for many also a URL"
    )
    parser.add_argument("--voice", type=Path, help="voice folder (default: the embedded one)")
    parser.add_argument("--dtype", choices=DTYPES, help="computation (default: the voice's; bfloat16: TPU, GPU)")
    parser.add_argument("--seed", type=int, default=0, help="of all randomness (default: 0)")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    one = parser.add_argument_group("with --instruction")
    one.add_argument("--prompt", type=Path, help="audio file whose voice is continued")
    one.add_argument("--prompt-transcript", help="what the prompt says")
    one.add_argument("--transcript", help="the words to be spoken, where the instruction does not quote them")
    one.add_argument("--language", help="en or zh (default: the voice predicts it)")
    one.add_argument(
        "--guidance",
        type=float,
        nargs="+",
        metavar="X",
        help="three strengths: text on semantic, text on acoustic, semantic on acoustic; or one for all; 1 is none",
    )
    one.add_argument("--max-duration-s", type=float, help="upper limit, seconds")
    _add_job_options(parser.add_argument_group("with --requests"))
    return parser


def _add_job_options(many: Any) -> None:
    many.add_argument("--workers", type=int, help="processes (default: this one)")
    many.add_argument("--threads", type=int, help="CPU threads of each worker (default: the cores, shared out)")
    many.add_argument("--engine", choices=("local", "ray"), help="this machine (default), or a Ray cluster")
    many.add_argument("--ray-address", help="of the cluster: auto (default), HOST:PORT, ray://... or local")
    many.add_argument("--gpus-per-worker", type=float, help="GPUs that a worker on Ray holds (default: 0)")
    many.add_argument("--unit-size", type=int, help="requests that are committed together (default: a thousandth)")
    many.add_argument("--format", choices=("wav", "flac", "opus"), help="of the sounds (default: wav)")
    many.add_argument("--shards", action="store_true", default=None, help="sounds in tar shards (WebDataset)")
    many.add_argument("--loudness-lufs", type=float, metavar="LUFS", help="bring sounds to it, such as -23")
    many.add_argument("--attempts", type=int, metavar="N", help="sounds tried before a quarantine (default: 3)")
    many.add_argument("--candidates", type=int, metavar="N", help="sounds of which the best is kept (default: 1)")
    many.add_argument("--max-wer", type=float, metavar="X", help="most errors that the ASR judge may hear, such as 0.2")
    many.add_argument(
        "--min-similarity", type=float, metavar="X", help="least similarity to the prompt's voice, 0 to 1"
    )
    many.add_argument("--price-per-hour", type=float, metavar="X", help="of a worker, for the cost on the job's page")


def _speak_one(options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from voxinstruct_jax.jobs.requests import parse_request
    from voxinstruct_jax.jobs.single import check_writable, speak

    _refuse(options, MANY_REQUESTS, "goes with --requests")
    place = _sound_file(Path(options.out))
    check_writable(place.parent)
    request = parse_request(_columns(options), ".")
    _say_opening()
    result = speak(open_voice(options.voice, options.dtype), request, place)
    if result.status == "failed":
        raise InputError(str(result.error))
    for note in (*result.checks, *result.notes):
        print(f"note: {note}", file=sys.stderr)
    print(
        f"{place}: {result.duration_s:.2f} s, {result.language_predicted}, {result.finish_reason}, seed {result.seed}"
    )
    return {"results": [to_dict(dataclasses.replace(result, audio=str(place)))], "rejected": []}, 0


def _refuse(options: argparse.Namespace, names: tuple[str, ...], why: str) -> None:
    unused = [name for name in names if getattr(options, name) is not None]
    if unused:
        raise ConfigError(f"--{unused[0].replace('_', '-')} {why}")


def _speak_file(options: argparse.Namespace) -> tuple[dict[str, Any], int]:
    from voxinstruct_jax.cli.job_page import write_page
    from voxinstruct_jax.jobs.claims import Claims
    from voxinstruct_jax.jobs.plan import open_plan
    from voxinstruct_jax.jobs.run import Job, run_job
    from voxinstruct_jax.jobs.settings import JobSettings
    from voxinstruct_jax.jobs.store import open_store

    _refuse(options, ONE_REQUEST, "goes with --instruction; with --requests it is a column")
    chosen = {item.name: getattr(options, item.name, None) for item in dataclasses.fields(JobSettings)}
    settings = JobSettings(**{name: value for name, value in chosen.items() if value is not None})
    settings = dataclasses.replace(settings, job_seed=options.seed)
    engine = _engine(options)
    store = open_store(options.out)
    voice = None if options.voice is None else options.voice.resolve()
    job = Job(
        place=options.out if "://" in options.out else os.path.abspath(options.out),  # noqa: PTH100 - links stay
        open_voice=functools.partial(open_voice, voice, options.dtype),
        threads=options.threads or 0,
    )
    try:
        with _ended_by_sigterm():
            with Claims(store) as claims:
                open_plan(store, options.requests, settings, claims, unit_size=options.unit_size, say=_say)
            _say_opening()
            finish = functools.partial(write_page, store, price_per_hour=options.price_per_hour)
            with job_bar() as report:
                progress = run_job(job, engine, store, report=report, finish=finish)
    except KeyboardInterrupt:
        store.tidy()
        raise InputError(f"{options.out}: stopped; the same command goes on where it stopped") from None
    return _summed_up(store, progress)


def _engine(options: argparse.Namespace) -> "Engine":
    """Where units are done."""
    from voxinstruct_jax.data.workers import count_cores
    from voxinstruct_jax.jobs.run import in_this_process

    for name in ("workers", "threads", "unit_size"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least 1")
    if options.engine == "ray":
        from voxinstruct_jax.jobs.ray_engine import on_ray

        return on_ray(
            address=options.ray_address or "auto",
            num_workers=options.workers,
            threads=options.threads or 1,
            gpus_a_worker=options.gpus_per_worker or 0.0,
        )
    _refuse(options, ("ray_address", "gpus_per_worker"), "goes with --engine ray")
    if options.workers is None and options.threads is None:
        return in_this_process
    from voxinstruct_jax.jobs.processes import in_processes

    workers = options.workers or 1
    return in_processes(workers, options.threads or max(1, count_cores() // workers), say=_say)


def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _say_opening() -> None:
    _say("opening the voice; its first sentence takes longest, since programs are compiled")


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends a job as Ctrl-C does: what is held is given back."""

    def leave(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def job_bar(title: str = "Speaking") -> Iterator[Any]:
    """The progress bar of a job: requests, hours of sound, speed, further tries, the time to its end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None)

        def report(progress: "Progress") -> None:
            found = progress.figures()
            left = "?" if found["left_s"] is None else f"{found['left_s'] // 60}:{found['left_s'] % 60:02d}"
            line = f"{found['audio_hours']:.2f} h, {found['audio_s_per_s']:.1f} audio s/s"
            line += f", {found['retries']} further tries, {left} left"
            bar.update(task, total=found["requests"], completed=found["finished"], description=line)

        yield report


def open_voice(folder: Path | None, dtype: Any) -> "AnyVoice":
    """Opens a voice; worker processes call it, too."""
    from voxinstruct_jax.voices import load

    return load(folder, dtype=dtype)


def _columns(options: argparse.Namespace) -> dict[str, Any]:
    """The options as one row of a request file."""
    values = {name: getattr(options, name) for name in ONE_REQUEST}
    if options.guidance is not None:
        if len(options.guidance) not in (1, 3):
            raise ConfigError(f"--guidance: give three strengths, or one for all; got {len(options.guidance)}")
        values["guidance"] = options.guidance * (3 // len(options.guidance))
    if options.prompt is not None:
        values["prompt"] = str(options.prompt)
    return {**values, "id": "speech", "instruction": options.instruction, "seed": options.seed}


def _sound_file(out: Path) -> Path:
    """The file to write; a folder gets `speech.wav`."""
    suffix = out.suffix.lower()
    if suffix in OTHER_SOUND_SUFFIXES and not out.is_dir():
        raise ConfigError(f"--out {out}: {suffix} is not written; take {', '.join(SOUND_SUFFIXES)} or a folder")
    return out if suffix in SOUND_SUFFIXES and not out.is_dir() else out / DEFAULT_NAME


def _summed_up(store: "Store", progress: "Progress") -> tuple[dict[str, Any], int]:
    """Prints what became of a job; returns what `--json` prints, and the exit code."""
    from voxinstruct_jax.jobs.plan import REJECTED_FILE
    from voxinstruct_jax.jobs.results import iter_results

    found = progress.figures()
    rejected = [json.loads(line) for line in (store.read(REJECTED_FILE) or b"").splitlines()]
    for line in progress.failures:
        _say(line)
    for row in rejected[:5]:
        _say(f"rejected row {row['row']}: {row['reason']}")
    print(
        f"{store.place}: {found['done']} spoken, {found['failed']} failed, {found['quarantined']} quarantined, "
        f"{found['rejected']} rejected; {found['audio_hours'] * 3600:.1f} s of sound in {found['synthesis_s']:.1f} s"
    )
    if found["retries"]:
        print(f"{found['retries']} further tries: {found['discarded_s']:.1f} s for sounds that were not kept")
    summary: dict[str, Any] = {"summary": found, "rejected": rejected[:MOST_PRINTED]}
    if found["finished"] <= MOST_PRINTED:
        summary["results"] = [to_dict(result) for result in iter_results(store.place)]
    code = 0 if found["done"] == found["requests"] and not rejected else SOME_FAILED
    return summary, code
