"""`voxinstruct synthesize --instruction TEXT | --requests FILE --out DIR`."""

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from voxinstruct_jax.cli.options import parse
from voxinstruct_jax.config import ConfigError, InputError, to_dict

if TYPE_CHECKING:
    from voxinstruct_jax.jobs.requests import RejectedRequest
    from voxinstruct_jax.jobs.results import Result

__all__ = ["run"]

EXAMPLE = """example: voxinstruct synthesize --instruction 'A cheerful girl says quickly: "We won!"' --out won.wav
         voxinstruct synthesize --requests requests.jsonl --out results"""
SOUND_SUFFIXES = (".wav", ".flac", ".ogg")
OTHER_SOUND_SUFFIXES = (".mp3", ".m4a", ".aac", ".opus")
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
        results, rejected = _speak_one(options) if options.requests is None else _speak_file(options)
    if options.json:
        print(json.dumps({"results": to_dict(results), "rejected": to_dict(rejected)}, ensure_ascii=False))
    return SOME_FAILED if rejected or any(result.status == "failed" for result in results) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "voxinstruct synthesize",
        description="Speak one instruction, or a file of requests.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--instruction", help="how and what to speak, the words to be spoken in quotes")
    parser.add_argument("--requests", type=Path, help="JSONL or Parquet; a row: id, instruction, language? seed? ...")
    parser.add_argument("--out", type=Path, required=True, help="a folder, or a .wav, .flac or .ogg file for one")
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
    return parser


def _speak_one(options: argparse.Namespace) -> tuple[list["Result"], list["RejectedRequest"]]:
    from voxinstruct_jax.jobs.requests import parse_request
    from voxinstruct_jax.jobs.run import check_writable, speak

    place = _sound_file(options.out)
    check_writable(place.parent)
    request = parse_request(_columns(options), Path())
    result = speak(_open_voice(options), request, place.parent, place.name, job_seed=options.seed)
    if result.status == "failed":
        raise InputError(str(result.error))
    for note in (*result.checks, *result.notes):
        print(f"note: {note}", file=sys.stderr)
    print(
        f"{place}: {result.duration_s:.2f} s, {result.language_predicted}, {result.finish_reason}, seed {result.seed}"
    )
    return [dataclasses.replace(result, audio=str(place))], []


def _speak_file(options: argparse.Namespace) -> tuple[list["Result"], list["RejectedRequest"]]:
    from voxinstruct_jax.jobs.requests import read_requests
    from voxinstruct_jax.jobs.run import claim_folder, run_requests

    unused = [name for name in ONE_REQUEST if getattr(options, name) is not None]
    if unused:
        raise ConfigError(f"--{unused[0].replace('_', '-')} goes with --instruction; with --requests it is a column")
    requests, rejected = read_requests(options.requests)
    claim_folder(options.out)
    with contextlib.ExitStack() as stack:
        results = run_requests(
            _open_voice(options),
            requests,
            options.out,
            job_seed=options.seed,
            rejected=rejected,
            report=_Bar(stack),
        )
    _print_summary(options.out, results, rejected)
    return results, rejected


class _Bar:
    """The progress bar of a job, with the time to its end."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._advance: Any = None

    def __call__(self, finished: int, total: int) -> None:
        from voxinstruct_jax.data.progress import progress_bar

        if self._advance is None:
            self._advance = self._stack.enter_context(progress_bar("Speaking", total, done=finished))
        else:
            self._advance()


def _open_voice(options: argparse.Namespace):  # noqa: ANN202 - the type is imported only when the command runs
    from voxinstruct_jax.voice import load

    print("opening the voice; its first sentence takes longest, since programs are compiled", file=sys.stderr)
    return load(options.voice, dtype=options.dtype)


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


def _print_summary(out: Path, results: Sequence["Result"], rejected: Sequence["RejectedRequest"]) -> None:
    failed = [result for result in results if result.status == "failed"]
    for result in failed[:5]:
        print(f"failed {result.id}: {result.error}", file=sys.stderr)
    for row in rejected[:5]:
        print(f"rejected row {row.row}: {row.reason}", file=sys.stderr)
    unsound = sum(bool(result.checks) for result in results)
    print(
        f"{out}: {len(results) - len(failed)} spoken, {len(failed)} failed, {len(rejected)} rejected"
        + (f", {unsound} silent or clipped" if unsound else "")
    )
