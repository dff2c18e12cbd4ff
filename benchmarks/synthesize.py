"""Many requests at once beside one at a time and beside the reference's way: audio seconds a second, ratios of one run.

Run: uv run python benchmarks/synthesize.py [--requests 24 --turns 2]
     (`synthesize_paper.py` is for an accelerator and the paper's size)
Bound by: products of few rows and reading the cache (AR), arithmetic (NAR).

The embedded voice speaks real requests; the three ways take turns. The reference's way, as in the release: one request
at a time, the text filled up to 512 slots, each guidance branch a pass of its own (two a semantic token, three an
acoustic one), eight passes a codebook. Its AR time is that of one branch times the passes it takes; its further
prefills and the text encoder that it runs again for each codebook are left out and would add to it. The engine's
overhead is the share of its time in which no program runs, each program being waited for.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import voxinstruct_jax as vox
from voxinstruct_jax import voice as voice_module
from voxinstruct_jax.decoding import engine
from voxinstruct_jax.decoding.profile import EngineProfile
from voxinstruct_jax.voice import Voice

NO_GUIDANCE = vox.Guidance(text_on_semantic=1.0, text_on_acoustic=1.0, semantic_on_acoustic=1.0)
PROGRAMS = ("run_fill", "run_advance", "fill_clips", "decode_codes")
REFERENCE_PASSES, REFERENCE_TEXT_SLOTS = 8, 512


def main() -> int:
    """Prints audio seconds a second of each way, turn by turn, and the median ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=24, help="requests a turn of the engine (default: 24)")
    parser.add_argument("--alone", type=int, default=4, help="of them, one at a time, each way (default: 4)")
    parser.add_argument("--turns", type=int, default=2, help="turns of each way (default: 2)")
    parser.add_argument("--profile", default="", help="JSON of settings that replace those of the default profile")
    options = parser.parse_args()
    voice = vox.load()
    profile = dataclasses.replace(voice.default_profile(), **json.loads(options.profile or "{}"))
    compare(voice, profile, options)
    return 0


def compare(voice: Voice, profile: EngineProfile, options: argparse.Namespace) -> None:
    """Runs the three ways in turn; a first round compiles and is not counted."""
    utterances = read_requests(options.requests)
    ways: dict[str, Callable[[], tuple[float, np.ndarray]]] = {
        "engine": lambda: together(voice, utterances, profile),
        "one at a time": lambda: alone(voice, utterances[: options.alone]),
        "the reference's way": lambda: reference(voice, utterances[: options.alone]),
    }
    for way in ways.values():
        way()
    speeds = collections.defaultdict(list)
    for _ in range(options.turns):
        for name, way in ways.items():
            audio_s, spent = way()
            speeds[name].append(audio_s / spent)
            print(f"{name}: {audio_s:.1f} s of audio in {_seconds(spent)}", flush=True)
    for name in list(ways)[1:]:
        ratios = [ours / theirs for ours, theirs in zip(speeds["engine"], speeds[name], strict=True)]
        clock, processor = np.median(ratios, axis=0)
        print(f"engine / {name}: {clock:.2f} by the clock, {processor:.2f} by processor time")
    programs: dict[str, np.ndarray] = {}
    _, spent = together(voice, utterances, profile, programs)
    total = sum(programs.values(), np.zeros(2))
    parts = ", ".join(f"{name} {part[0] / total[0]:.0%}" for name, part in programs.items())
    print(f"engine: {_seconds(spent)}, of which programs take {_seconds(total)} ({parts})")
    print(f"overhead {spent[0] / total[0] - 1:.1%} by the clock")


def read_requests(count: int) -> list[vox.Utterance]:
    """Real instructions that no model was trained on, again and again under other seeds."""
    rows = [json.loads(line) for line in Path(__file__).with_name("unseen_requests.jsonl").read_text().splitlines()]
    return [
        vox.Utterance(instruction=rows[number % len(rows)]["instruction"], seed=number // len(rows))
        for number in range(count)
    ]


def together(
    voice: Voice, utterances: list[vox.Utterance], profile: EngineProfile, programs: dict[str, Any] | None = None
) -> tuple[float, np.ndarray]:
    """Seconds of audio and of time (`_now`), all at once; `programs` takes up the time of each program."""
    start, audio_s = _now(), 0.0
    with watched(programs):
        for _, audio in voice.synthesize_many(utterances, profile=profile):
            assert isinstance(audio, vox.Audio), audio
            audio_s += audio.duration_s
    return audio_s, _now() - start


def alone(voice: Voice, utterances: list[vox.Utterance]) -> tuple[float, np.ndarray]:
    """The same one at a time."""
    start = _now()
    audio_s = sum(voice.synthesize(item.instruction, seed=item.seed).duration_s for item in utterances)
    return audio_s, _now() - start


def _now() -> np.ndarray:
    """Seconds by the clock, and of processor time, which other programs on the machine disturb less."""
    return np.array([time.perf_counter(), time.process_time()])


def _seconds(spent: np.ndarray) -> str:
    return f"{spent[0]:.1f} s by the clock, {spent[1]:.1f} s of processor time"


def reference(voice: Voice, utterances: list[vox.Utterance]) -> tuple[float, np.ndarray]:
    """The same in the reference's way."""
    slow = dataclasses.replace(
        voice,
        config=dataclasses.replace(
            voice.config, num_steps=(REFERENCE_PASSES,) * len(voice.config.num_steps), guidance=NO_GUIDANCE
        ),
    )
    audio_s, spent = 0.0, np.zeros(2)
    for item in utterances:
        start, parts = _now(), {}
        with padded_text(), watched(parts, voice_module, ("decode_requests",)):
            audio = slow.synthesize(item.instruction, seed=item.seed)
        spent += _now() - start
        semantic, acoustic = len(audio.semantic), audio.acoustic.shape[1]
        passes = (2 * semantic + 3 * acoustic) / (semantic + acoustic)
        spent += (passes - 1) * parts["decode_requests"]
        audio_s += audio.duration_s
    return audio_s, spent


@contextlib.contextmanager
def padded_text() -> Iterator[None]:
    """Fills every text up to the reference's slots."""
    widths = voice_module.TEXT_WIDTHS
    voice_module.TEXT_WIDTHS = (REFERENCE_TEXT_SLOTS,)
    try:
        yield
    finally:
        voice_module.TEXT_WIDTHS = widths


@contextlib.contextmanager
def watched(spent: dict[str, Any] | None, module: Any = engine, names: tuple[str, ...] = PROGRAMS) -> Iterator[None]:
    """Waits for each call of these functions and adds up their times, if there is a table for them."""
    if spent is None:
        yield
        return
    originals = {name: getattr(module, name) for name in names}

    def timed(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start = _now()
            found = jax.block_until_ready(originals[name](*arguments))
            spent[name] = spent.get(name, 0.0) + _now() - start
            return found

        return call

    for name in names:
        setattr(module, name, timed(name))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(module, name, original)


if __name__ == "__main__":
    sys.exit(main())
