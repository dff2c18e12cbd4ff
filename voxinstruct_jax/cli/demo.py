"""`voxinstruct demo`: the embedded voice speaks a handful of instructions and writes a report to listen to."""

import argparse
import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from voxinstruct_jax.cli.options import parse
from voxinstruct_jax.config import InputError

if TYPE_CHECKING:
    from voxinstruct_jax.evaluation.report import ReportItem
    from voxinstruct_jax.guidance import Guidance
    from voxinstruct_jax.judges.asr import Listener
    from voxinstruct_jax.utterance import Audio
    from voxinstruct_jax.voice import Voice

__all__ = ["run"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One utterance of the demo."""

    name: str
    title: str
    instruction: str
    prompted: bool = False
    guidance: "Guidance | None" = None


UNITS = {"word": "words", "character": "characters", "pinyin": "syllables", "mixed": "words and characters"}
CASES = (
    Case(
        name="a",
        title="Figure 3 (a): happy and quick",
        instruction="A happy old man with low pitch and high energy, speaking quickly, happily recounts his recent "
        "activities: “But don't you always want to be happy, Bruno?”",
    ),
    Case(
        name="b",
        title="Figure 3 (b): one word stressed",
        instruction="Engaging in a dialogue, a youthful male with normal pitch saying “But don't you always want to be "
        "happy, Bruno?”, drawing attention to “always” by stressing it significantly.",
    ),
    Case(
        name="c",
        title="Figure 3 (c): slow and sad, with a voice prompt",
        instruction="Stated sadly with a heavy heart and spoken very slowly: “For it is very hard, my lord. To carry "
        "on, to persist without yielding.”",
        prompted=True,
    ),
    Case(
        name="d",
        title="Figure 3 (d): calm, with a voice prompt",
        instruction="In the television series, a general said in a calm tone, “For it is very hard, my lord. To carry "
        "on, to persist without yielding”, emphasizing the word “yielding”.",
        prompted=True,
    ),
    Case(
        name="mandarin", title="Mandarin", instruction="一位女士语速缓慢地轻声说：“今天的天气真好，我们去公园走走吧。”"
    ),
    Case(
        name="mixed",
        title="Two languages in one sentence",
        instruction="A woman says at a normal pace: “我们明天开会, please bring your notes.”",
    ),
)
GRID_SENTENCE = 'A man says slowly: "The river runs past the old mill."'
GRID = (
    ("no guidance", (1.0, 1.0, 1.0)),
    ("instruction on ST (gamma 2)", (2.0, 1.0, 1.0)),
    ("instruction on AT (alpha 2)", (1.0, 2.0, 1.0)),
    ("ST on AT (beta 2)", (1.0, 1.0, 2.0)),
    ("all three at 2", (2.0, 2.0, 2.0)),
    ("without ST (beta 0)", (1.0, 1.0, 0.0)),
)
INTRODUCTION = """Instructions spoken by the voice that comes with the package: a small model, trained on two hours of
generated speech. Read its model card for what it can and cannot do.

Each plot shows the mel spectrogram with the pitch curve over it, and the energy below."""
GRID_INTRODUCTION = """One sentence under different guidance weights, with one seed: table 6 of the VoxInstruct paper,
made audible. Without semantic tokens (ST) the acoustic tokens (AT) follow the instruction alone."""


def run(arguments: list[str]) -> int:
    """Speaks and reports."""
    parser = argparse.ArgumentParser(
        "voxinstruct demo",
        description="Speak a handful of instructions with the embedded voice. Example: voxinstruct demo --out demo",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo"), help="folder for WAVs and report.html (default: demo)"
    )
    parser.add_argument("--voice", type=Path, help="another voice folder")
    parser.add_argument("--seed", type=int, default=0, help="seed of all utterances (default: 0)")
    parser.add_argument("--no-judge", action="store_true", help="do not listen with the ASR judge")
    options = parse(parser, arguments)
    _keep_compiled_programs()
    from voxinstruct_jax.evaluation.report import ReportSection, write_report
    from voxinstruct_jax.voice import load

    begun = time.monotonic()
    voice = load(options.voice)
    listener, why_not = (None, "--no-judge") if options.no_judge else _listener()
    if listener is None:
        print(f"nothing is listened to: {why_not}", flush=True)
    cases = (*CASES, *_grid())
    speak = _speaker(voice, options.out, options.seed, listener)
    items = []
    for number, case in enumerate(cases, 1):
        items.append(speak(case))
        left = (time.monotonic() - begun) / number * (len(cases) - number)
        print(f"[{number}/{len(cases)}] {case.title}: {items[-1].judgement} | {left:.0f} s left", flush=True)
    report = write_report(
        options.out,
        "What the embedded voice says",
        INTRODUCTION,
        [
            ReportSection(title="Instructions", introduction="", items=items[: len(CASES)]),
            ReportSection(title="Guidance", introduction=GRID_INTRODUCTION, items=items[len(CASES) :]),
        ],
    )
    print(f"{len(cases)} utterances in {time.monotonic() - begun:.0f} s; open {report}")
    return 0


def _grid() -> tuple[Case, ...]:
    from voxinstruct_jax.guidance import Guidance

    return tuple(
        Case(
            name=f"guidance-{index}",
            title=title,
            instruction=GRID_SENTENCE,
            guidance=Guidance(text_on_semantic=gamma, text_on_acoustic=alpha, semantic_on_acoustic=beta),
        )
        for index, (title, (gamma, alpha, beta)) in enumerate(GRID)
    )


def _speaker(voice: "Voice", out: Path, seed: int, listener: "Listener | None") -> "Callable[[Case], ReportItem]":
    """Returns what speaks a case, saves it and listens to it."""
    from voxinstruct_jax.evaluation.report import ReportItem
    from voxinstruct_jax.voice_folder import embedded_release

    def speak(case: Case) -> ReportItem:
        prompt = embedded_release() / "prompt.ogg" if case.prompted else None
        audio = voice.synthesize(case.instruction, prompt=prompt, guidance=case.guidance, seed=seed)
        path = out / "audio" / f"{case.name}.wav"
        audio.save(path)
        heard, judgement = _judge(case, audio, listener)
        guidance = case.guidance or voice.config.guidance
        facts = {
            "guidance (gamma, alpha, beta)": f"{guidance.text_on_semantic:g}, {guidance.text_on_acoustic:g}, "
            f"{guidance.semantic_on_acoustic:g}",
        }
        if audio.notes:
            facts["notes"] = "; ".join(audio.notes)
        return ReportItem(
            title=case.title,
            instruction=case.instruction,
            audio=path,
            language=audio.language,
            seed=audio.seed,
            finish_reason=audio.finish_reason,
            heard=heard,
            judgement=judgement,
            facts=facts,
        )

    return speak


def _judge(case: Case, audio: "Audio", listener: "Listener | None") -> tuple[str | None, str]:
    """What was heard back, and how well it fits the quoted words."""
    from voxinstruct_jax.judges.transcripts import error_counts
    from voxinstruct_jax.text.content import spoken_content

    if listener is None:
        return None, "not judged"
    mixed = case.name == "mixed"
    heard = listener.transcribe(audio.samples, audio.sample_rate, None if mixed else audio.language)
    expected = spoken_content(case.instruction).text or ""
    counts = error_counts(expected, heard, audio.language, "mixed" if mixed else None)
    return heard, f"{counts.errors} errors in {counts.length} {UNITS[counts.unit]}"


def _listener() -> "tuple[Listener | None, str]":
    from voxinstruct_jax.judges.asr import load_asr

    try:
        return load_asr(), ""
    except InputError as error:
        return None, str(error)


def _keep_compiled_programs() -> None:
    """Keeps compiled programs between runs, in the user's cache folder."""
    import jax

    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "voxinstruct" / "jax"
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
