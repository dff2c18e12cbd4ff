"""Judges at work: a stage hears one item and writes down what it found, as plain JSON values.

What a stage finds depends on the item alone, so it is kept (`evaluation.evidence`) and metrics are counted from it
(`evaluation.metrics`). Each stage gets the sound once resampled, the first minute of it. Start at `Stage`.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from importlib import import_module, metadata, resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from voxinstruct_jax.audio.waveform import read_audio
from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.data.annotate import JUDGED_RATE, as_clip
from voxinstruct_jax.data.manifest import ATTRIBUTES
from voxinstruct_jax.data.word_times import open_word_aligner
from voxinstruct_jax.evaluation.items import Item
from voxinstruct_jax.evaluation.pairs import compare_pitch, compare_spectra
from voxinstruct_jax.evaluation.reconstruction import compare_reconstruction, pesq_scores
from voxinstruct_jax.judges.asr import load_asr
from voxinstruct_jax.judges.dnsmos import DnsMos
from voxinstruct_jax.judges.pitch import (
    ACTIVE_RANGE_DB,
    ENERGY_HOP_S,
    FLOOR_DBFS,
    LONGEST_CLOSURE_S,
    active_level_dbfs,
    energy_track,
    pitch_track,
    spoken_seconds,
)
from voxinstruct_jax.judges.registry import ENTRY_POINTS, find_judges, judge_places
from voxinstruct_jax.judges.speaker import EMBEDDING_NAME, embed_speaker
from voxinstruct_jax.judges.tones import TONES, expected_tones, load_tone_model, tone_cues
from voxinstruct_jax.text.words import split_words

__all__ = ["LONGEST_S", "SOUND", "Evidence", "Stage", "attribute_stage", "open_stage", "stage_places"]

Evidence = dict[str, Any]
LONGEST_S = 60.0
"""A runaway is judged by its first minute, and flagged."""
SOUND = "sound"
"""The stage that all others need: is there any sound."""
LONGEST_PIECE_S = 28.0
CUT_BETWEEN_S = (8.0, 12.0)
"""What an ASR judge gets at once (s): longer sound is cut at a quiet place between these times."""
LEAST_SPEECH_S = 1.0
"""Scores of less mean nothing: predictors of MOS punish short clips by .7."""
_CLASS = re.compile(r"[\w.]+:\w+")
_DIGITS = 6
OPTIONAL = {
    "asr.large": "Whisper-large-v3 as a CTranslate2 folder: --judge asr.large=FOLDER",
    "asr.paraformer": "Paraformer-zh: --judge asr.paraformer=MODULE:CLASS, a class with transcribe and fingerprint",
    "similarity.wavlm_sv": "WavLM-large with ECAPA (wavlm_large_finetune.pth, see BytedanceSpeech/seed-tts-eval): "
    "--judge similarity.wavlm_sv=MODULE:CLASS, a class with name, sample_rate and embed",
    "similarity.emotion": "an emotion embedding: --judge similarity.emotion=MODULE:CLASS, a class with name, "
    "sample_rate and embed",
    "mos.utmos": "UTMOS22-strong: --judge mos.utmos=MODULE:CLASS, a class with name, sample_rate and measure",
    "mos.distillmos": "DistillMOS (package distillmos, PyTorch): --judge mos.distillmos=MODULE:CLASS, a class with "
    "name, sample_rate and measure",
    "clap.laion": "LAION-CLAP: --judge clap.laion=MODULE:CLASS, a class with name, sample_rate and measure",
    "classes.panns": "PANNs (CNN14): --judge classes.panns=MODULE:CLASS, a class with name, sample_rate and classify",
}
"""Judges whose weights come with no package, and what to put where."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One judge.

    Attributes:
        name: Such as "asr".
        fingerprint: The judge with version, weights and settings; another one wherever findings differ.
        hears: What it finds of an item; raises `InputError` where the item cannot be judged.
        depends: Fields of `Item`, besides its sound, that findings depend on.
        applies: Whether an item concerns it.
    """

    name: str
    fingerprint: str
    hears: Callable[[Item], Evidence]
    depends: tuple[str, ...] = ()
    applies: Callable[[Item], bool] = lambda item: True


def stage_places(given: Mapping[str, str]) -> dict[str, str]:
    """Where the judges of stages are that are not built in: entry points, and `given` by hand (these win).

    Args:
        given: `MODULE:CLASS` or a folder, by stage.

    Raises:
        ConfigError: A name is none that a judge may have.
    """
    for name in given:
        known = (*ATTRIBUTES, "asr", "language")
        if name not in known and not name.startswith(("asr.", "mos.", "similarity.", "clap.", "classes.")):
            raise ConfigError(
                f"--judge {name}: unknown; known are asr, asr.NAME, language, mos.NAME, similarity.NAME, clap.NAME, "
                f"classes.NAME and {', '.join(ATTRIBUTES)}"
            )
    return {point.name: point.value for point in metadata.entry_points(group=ENTRY_POINTS)} | dict(given)


def attribute_stage(attribute: str) -> str:
    """Name of the stage that judges an attribute."""
    return f"attribute.{attribute}"


@functools.cache
def open_stage(name: str, place: str = "") -> Stage:
    """Opens a judge; weights are read when it first hears.

    Args:
        name: Of the stage.
        place: `MODULE:CLASS` or a folder, where it is no judge of this package.

    Raises:
        InputError: What it needs is not installed; the message says what to put where.
        ConfigError: What stands at the place is no judge.
    """
    if name in _OPENERS and not place:
        return _OPENERS[name]()
    kind, _, rest = name.partition(".")
    if kind == "asr":
        return _asr(name, place)
    if kind == "language":
        return _language(place)
    if kind == "attribute":
        return _attribute(rest, place)
    if not place:
        raise InputError(f"needs {OPTIONAL.get(name, f'a judge: --judge {name}=MODULE:CLASS')}")
    member, make = _GIVEN.get(kind, ("measure", _scorer))
    return make(name, _made(name, place, ("name", "sample_rate", member)))


def rounded(value: Any) -> Any:
    """Numbers to six digits, so that the last bits of a sum change no byte; what is no number becomes None."""
    if isinstance(value, Mapping):
        return {key: rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(each) for each in value]
    if isinstance(value, float | np.floating):
        return float(f"{value:.{_DIGITS}g}") if np.isfinite(value) else None
    return value


def hear(item: Item, sample_rate: int = JUDGED_RATE) -> Float[np.ndarray, " sample"]:
    """The sound of an item, its first minute, within [-1, 1].

    Raises:
        InputError: There is none.
    """
    if item.audio is None:
        raise InputError(item.error or "the system made no sound")
    return np.clip(_read(item.audio, sample_rate, item.offset_s, item.duration_s), -1, 1)


def _read(path: str, sample_rate: int, offset_s: float = 0.0, duration_s: float | None = None) -> np.ndarray:
    if duration_s is None and _file_seconds(path) - offset_s > LONGEST_S:
        duration_s = LONGEST_S
    elif duration_s is not None:
        duration_s = min(duration_s, LONGEST_S)
    samples = read_audio(path, sample_rate, offset_s=offset_s, duration_s=duration_s)
    return samples[: int(LONGEST_S * sample_rate)]


def _file_seconds(path: str) -> float:
    """0 where libsndfile cannot say."""
    import soundfile

    try:
        info = soundfile.info(path)
    except (soundfile.LibsndfileError, OSError):
        return 0.0
    return info.frames / info.samplerate


def _sound(item: Item) -> Evidence:
    """Whether there is sound, how long and how loud; never raises."""
    try:
        samples = hear(item)
    except InputError as error:
        return {"status": _status(item), "problem": str(error)}
    assert item.audio is not None
    track, levels = energy_track(samples, JUDGED_RATE), np.abs(samples)
    quietest = max(float(track.level_dbfs.max(initial=FLOOR_DBFS)) - ACTIVE_RANGE_DB, FLOOR_DBFS)
    active = np.flatnonzero(track.level_dbfs > quietest)
    gaps = np.diff(active) - 1
    pauses = gaps[gaps > LONGEST_CLOSURE_S / ENERGY_HOP_S] * ENERGY_HOP_S
    first, last = (active[0], active[-1] + 1) if len(active) else (0, 0)
    whole_s = item.duration_s if item.duration_s is not None else max(_file_seconds(item.audio) - item.offset_s, 0.0)
    return {
        "status": "ok",
        "duration_s": len(samples) / JUDGED_RATE,
        "whole_s": max(whole_s, len(samples) / JUDGED_RATE),
        "active_s": float(last - first) * ENERGY_HOP_S,
        "net_s": spoken_seconds(track),
        "active_db": active_level_dbfs(track) if len(active) else None,
        "peak_db": 20 * np.log10(max(float(levels.max(initial=0.0)), 1e-5)),
        "range_db": float(np.ptp(np.percentile(track.level_dbfs[active], [5, 95]))) if len(active) else 0.0,
        "clipped": float(np.mean(levels >= 1.0)) if len(levels) else 0.0,
        "leading_s": float(first) * ENERGY_HOP_S,
        "trailing_s": float(len(track.level_dbfs) - last) * ENERGY_HOP_S,
        "pauses": len(pauses),
        "pause_mean_s": float(pauses.mean()) if len(pauses) else 0.0,
        "pause_longest_s": float(pauses.max(initial=0.0)),
    }


def _status(item: Item) -> str:
    if item.audio is None or not Path(item.audio).is_file():
        return "missing"
    return "corrupt" if Path(item.audio).stat().st_size else "empty"


def _asr(name: str, place: str) -> Stage:
    judge = _made(name, place, ("fingerprint", "transcribe")) if _CLASS.fullmatch(place) else _whisper(name, place)

    def hears(item: Item) -> Evidence:
        heard = [judge.transcribe(piece, JUDGED_RATE, item.language) for piece in pieces(hear(item))]
        return {"heard": " ".join(text for text in heard if text)}

    return Stage(
        name=name,
        fingerprint=f"{judge.fingerprint}/pieces{LONGEST_PIECE_S:g}s",
        hears=hears,
        depends=("language",),
        applies=lambda item: item.language in ("en", "zh"),
    )


def pieces(samples: Float[np.ndarray, " sample"]) -> list[Float[np.ndarray, " piece"]]:
    """Cuts long sound where it is quietest: in a window of 30 s Whisper leaves out what is said again and again."""
    found = []
    while len(samples) > LONGEST_PIECE_S * JUDGED_RATE:
        low, high = (int(seconds / ENERGY_HOP_S) for seconds in CUT_BETWEEN_S)
        levels = energy_track(samples, JUDGED_RATE).level_dbfs[low:high]
        cut = int((low + int(np.argmin(levels))) * ENERGY_HOP_S * JUDGED_RATE)
        found.append(samples[:cut])
        samples = samples[cut:]
    return [*found, samples]


def _language(place: str) -> Stage:
    judge = _made("language", place, ("fingerprint", "detect_language")) if place else _whisper("language", "")

    def hears(item: Item) -> Evidence:
        samples = hear(item)
        _spoken_enough(samples, JUDGED_RATE)
        language, probability = judge.detect_language(samples, JUDGED_RATE)
        return {"language": language, "probability": probability}

    return Stage(name="language", fingerprint=f"{judge.fingerprint}/language", hears=hears)


def _whisper(name: str, place: str) -> Any:
    if name in OPTIONAL and not place:
        raise InputError(f"needs {OPTIONAL[name]}")
    return load_asr(place or None, num_threads=1)


def _pitch(item: Item) -> Evidence:
    track = pitch_track(hear(item), JUDGED_RATE)
    found = track.f0_hz[track.voiced].astype(np.float64)
    if not len(found):
        return {"voiced": 0.0}
    semitones = 12 * np.log2(found / np.median(found))
    times_s = track.times_s[track.voiced].astype(np.float64)
    slope = np.polyfit(times_s, semitones, 1)[0] if np.ptp(times_s) > 0 else 0.0
    return {
        "voiced": float(track.voiced.mean()),
        "median_hz": float(np.median(found)),
        "mean_hz": float(found.mean()),
        "sd_hz": float(found.std()),
        "sd_st": float(semitones.std()),
        "span_st": float(np.ptp(np.percentile(semitones, [5, 95]))),
        "slope_st_s": float(slope),
    }


def _pair(item: Item) -> Evidence:
    assert item.reference_audio is not None
    found, true = hear(item), _read(item.reference_audio, JUDGED_RATE)
    path = compare_spectra(found, true)
    lengths = {"ratio": len(found) / len(true)}
    if path is None:
        return lengths
    pitch = compare_pitch(pitch_track(found, JUDGED_RATE), pitch_track(true, JUDGED_RATE), path)
    return {**lengths, "mcd_db": path.mcd_db, "path_ratio": path.ratio, **pitch}


def _tone_stage() -> Stage:
    aligner = open_word_aligner(Path(str(resources.files("voxinstruct_jax") / "release")))

    def hears(item: Item) -> Evidence:
        samples = hear(item)
        times = aligner.word_times(samples, JUDGED_RATE, item.transcript)
        if times is None:
            raise InputError("the transcript cannot have been spoken in the clip")
        tones = expected_tones(item.transcript)
        expected = [tones[word.start] for word in split_words(item.transcript)]
        cues = tone_cues(pitch_track(samples, JUDGED_RATE), times)
        likely = load_tone_model().probabilities(cues)
        known = [place for place, tone in enumerate(expected) if tone and np.isfinite(cues[place]).all()]
        return {
            "expected": [expected[place] for place in known],
            "heard": [TONES[int(likely[place].argmax())] for place in known],
        }

    return Stage(
        name="tone",
        fingerprint=f"acoustic-tone/2/swift-f0-{metadata.version('swift-f0')}",
        hears=hears,
        depends=("transcript",),
        applies=lambda item: item.language == "zh",
    )


def _against_reference(measure: Callable[[Any, Any], dict[str, float] | str]) -> Callable[[Item], Evidence]:
    def hears(item: Item) -> Evidence:
        assert item.reference_audio is not None
        found = measure(hear(item), _read(item.reference_audio, JUDGED_RATE))
        if isinstance(found, str):
            raise InputError(found)
        return dict(found)

    return hears


def _spoken_enough(samples: Float[np.ndarray, " sample"], sample_rate: int) -> None:
    if spoken_seconds(energy_track(samples, sample_rate)) < LEAST_SPEECH_S:
        raise InputError(f"less than {LEAST_SPEECH_S:g} s of speech")


def _dnsmos() -> Stage:
    judge = DnsMos()

    def hears(item: Item) -> Evidence:
        samples = hear(item)
        _spoken_enough(samples, JUDGED_RATE)
        return dict(judge.scores(samples))

    return Stage(name="mos.dnsmos", fingerprint=judge.fingerprint, hears=hears)


class _Resemblyzer:
    name, sample_rate = EMBEDDING_NAME, JUDGED_RATE

    def embed(self, samples: Float[np.ndarray, " sample"]) -> Float[np.ndarray, "256"] | None:
        return embed_speaker(samples, JUDGED_RATE)


def _embedder(name: str, judge: Any) -> Stage:
    """Embeds the clip, and the prompt and the reference where there are any."""

    def embed(samples: Float[np.ndarray, " sample"]) -> list[float]:
        _spoken_enough(samples, judge.sample_rate)
        found = judge.embed(samples)
        if found is None:
            raise InputError("too little speech for an embedding")
        return [float(value) for value in np.asarray(found, np.float64) / np.linalg.norm(found)]

    def hears(item: Item) -> Evidence:
        others = {"prompt": item.prompt, "reference": item.reference_audio}
        found = {"clip": embed(hear(item, judge.sample_rate))}
        for which, path in others.items():
            if path is not None:
                found[which] = embed(_read(path, judge.sample_rate))
        return found

    return Stage(name=name, fingerprint=judge.name, hears=hears, depends=("prompt", "reference_audio"))


def _scorer(name: str, judge: Any) -> Stage:
    """A number a clip; `clap` judges get the instruction too."""
    described = name.startswith("clap.")

    def hears(item: Item) -> Evidence:
        samples = hear(item, judge.sample_rate)
        _spoken_enough(samples, judge.sample_rate)
        found = judge.measure(samples, item.instruction) if described else judge.measure(samples)
        if found is None:
            raise InputError(f"{judge.name} gave no score")
        return {"score": float(found)}

    return Stage(name=name, fingerprint=judge.name, hears=hears, depends=("instruction",) if described else ())


def _classifier(name: str, judge: Any) -> Stage:
    """Probabilities of classes, of the clip and of the reference where there is one."""

    def classify(samples: Float[np.ndarray, " sample"]) -> list[float]:
        found = np.asarray(judge.classify(samples), np.float64)
        if found.ndim != 1 or not found.sum() > 0 or found.min() < 0:
            raise InputError(f"{judge.name} gave no probabilities: expected one number from 0 up a class")
        return [float(value) for value in found / found.sum()]

    def hears(item: Item) -> Evidence:
        found = {"clip": classify(hear(item, judge.sample_rate))}
        if item.reference_audio is not None:
            found["reference"] = classify(_read(item.reference_audio, judge.sample_rate))
        return found

    return Stage(name=name, fingerprint=judge.name, hears=hears, depends=("reference_audio",))


_GIVEN: dict[str, tuple[str, Callable[[str, Any], Stage]]] = {
    "similarity": ("embed", _embedder),
    "classes": ("classify", _classifier),
}
"""What a judge given by hand must have beside a name and a sample rate, by its kind; others have `measure`."""


def _attribute(attribute: str, place: str) -> Stage:
    places = judge_places({attribute: place} if place else {})
    if attribute == "stress" and attribute not in places:
        places["stress"] = "voxinstruct_jax.data.stress_judge:StressJudge"
    if attribute not in places:
        raise InputError(f"no judge of {attribute} comes with this package: --judge {attribute}=MODULE:CLASS")
    judge = find_judges([attribute], places)[attribute]

    def hears(item: Item) -> Evidence:
        found = judge.measure(as_clip(hear(item), item.language, item.transcript))
        if found is None:
            raise InputError(f"{judge.name} cannot judge it")
        return {name: value for name, value in dataclasses.asdict(found).items() if value not in (None, ())}

    return Stage(
        name=attribute_stage(attribute),
        fingerprint=judge.name,
        hears=hears,
        depends=("language", "transcript"),
        applies=lambda item: attribute in item.attributes,
    )


def _made(name: str, place: str, members: tuple[str, ...]) -> Any:
    module, _, attribute = place.partition(":")
    try:
        judge = getattr(import_module(module), attribute)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"--judge {name}={place}: cannot be opened ({error}); give MODULE:CLASS of a class that is made without "
            "arguments, its module on the Python path"
        ) from error
    missing = [member for member in members if not hasattr(judge, member)]
    if missing:
        raise ConfigError(f"--judge {name}={place}: lacks {', '.join(missing)}; see docs/evaluate.md")
    return judge


def _package(name: str, extra: str = "evaluation") -> str:
    """Version of a package; raises where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError as error:
        raise InputError(
            f"needs {name}: run with `uv run --extra {extra}`, or install voxinstruct-jax[{extra}]"
        ) from error


def _has_reference(item: Item) -> bool:
    return item.reference_audio is not None


def _pair_stage() -> Stage:
    return Stage(
        name="pair",
        fingerprint=f"world-{_package('pyworld')}/swift-f0-{metadata.version('swift-f0')}/dtw/1",
        hears=_pair,
        depends=("reference_audio",),
        applies=_has_reference,
    )


def _reconstruction_stage() -> Stage:
    return Stage(
        name="reconstruction",
        fingerprint=f"pystoi-{_package('pystoi')}/16kHz/1",
        hears=_against_reference(compare_reconstruction),
        depends=("reference_audio",),
        applies=_has_reference,
    )


def _pesq_stage() -> Stage:
    try:
        version = metadata.version("pesq")
    except metadata.PackageNotFoundError as error:
        raise InputError("needs the package pesq, which a C compiler must build: `uv pip install pesq`") from error
    return Stage(
        name="pesq",
        fingerprint=f"pesq-{version}/wb/16kHz/1",
        hears=_against_reference(pesq_scores),
        depends=("reference_audio",),
        applies=_has_reference,
    )


_OPENERS: dict[str, Callable[[], Stage]] = {
    SOUND: lambda: Stage(name=SOUND, fingerprint="level/25ms/40dB/60s/1", hears=_sound),
    "pitch": lambda: Stage(
        name="pitch", fingerprint=f"swift-f0-{metadata.version('swift-f0')}/60-500Hz/1", hears=_pitch
    ),
    "tone": _tone_stage,
    "similarity.vox": lambda: _embedder("similarity.vox", _Resemblyzer()),
    "mos.dnsmos": _dnsmos,
    "pair": _pair_stage,
    "reconstruction": _reconstruction_stage,
    "pesq": _pesq_stage,
}
