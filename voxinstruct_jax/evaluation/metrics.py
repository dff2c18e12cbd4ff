"""The metrics of one item: what each is, by whose protocol, and how it is counted from what a judge found.

A metric is a value (`Metric`) with one function, item and evidence to `Score`. Every score is a ratio `n / d`, so that
any set of items adds up exactly. `METRICS` lists them all. Read `Metric`, then `error_rate`.

Source:
    Formulas stand beside each metric; VoxInstruct section 5 (WER, MCD, SECS, accuracy, stress), Seed-TTS-eval (its two
    error rates), and the sources of `judges` and `evaluation.pairs`.
"""

import dataclasses
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.annotate import count_syllables
from voxinstruct_jax.data.manifest import ATTRIBUTES
from voxinstruct_jax.evaluation.items import Item
from voxinstruct_jax.evaluation.stages import SOUND, Evidence, attribute_stage
from voxinstruct_jax.judges.bins import CLASSES, Bins, classify, group
from voxinstruct_jax.judges.dnsmos import DNSMOS_SCORES
from voxinstruct_jax.judges.transcripts import Unit, align, error_counts, tokens
from voxinstruct_jax.text.words import split_words

__all__ = ["Findings", "Metric", "Score", "all_metrics", "finish_flags", "is_mixed"]

Findings = Mapping[str, Evidence]
"""By stage. `sound` is always there; another stage is absent where its judge is."""
Status = Literal["ok", "failed", "void"]

SECONDS_A_SYLLABLE = {"en": 0.22, "zh": 0.19}
"""Medians of the generated corpus at normal speed; a project choice, part of the flags' protocol."""
LONGEST_FACTOR, SHORTEST_FACTOR = 3.0, 0.4
LARGEST_COMPRESSION = 2.4
LONGEST_HEARD = 2.0
REPEATED = 3
SILENT_PEAK_DB, SILENT_S = -50.0, 0.2
CLIPPED_SHARE = 1e-3
UNHEARD_WER = 0.2
"""Above it nobody knows how many of the words were spoken, so a rate of them means nothing."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """Of one item.

    Attributes:
        n: Numerator; None where nothing could be counted.
        d: Denominator.
        status: "ok"; "failed": the system gave no sound, which counts against it; "void": it cannot be judged.
        parts: Further counts, such as kinds of errors.
        reason: Why it is void or failed.
    """

    n: float | None = None
    d: float = 1.0
    status: Status = "ok"
    parts: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""

    @property
    def value(self) -> float | None:
        """None where there is none."""
        return None if self.n is None or not self.d else self.n / self.d


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric.

    Attributes:
        id: Such as "wer.vox"; the part behind the dot is the protocol's.
        unit: Of the value.
        better: Direction; empty where neither is.
        protocol: Formula and settings, in words.
        stage: Whose judge it rests on.
        measure: Score of an item with sound, from its findings, which the stage's judge has made.
        applies: Whether an item concerns it.
        worst: Value of an item without sound; None leaves it without a value, but not out of the total.
        without_sound: Overrides `worst` where it depends on the item.
        tie: Largest difference that means nothing.
        normaliser: Text unit whose normaliser belongs to the judge's name.
        bins: Whether class boundaries belong to it.
    """

    id: str
    unit: str
    better: Literal["higher", "lower", ""]
    protocol: str
    stage: str
    measure: Callable[[Item, Findings], Score]
    applies: Callable[[Item], bool] = lambda item: True
    worst: float | None = None
    without_sound: Callable[[Item, Findings], Score] | None = None
    tie: float = 0.0
    normaliser: Unit | None = None
    bins: bool = False

    def score(self, item: Item, findings: Findings) -> Score:
        """Score of any item; never raises on what a user's files hold."""
        if findings[SOUND]["status"] != "ok":
            lost = self.without_sound(item, findings) if self.without_sound else Score(n=self.worst)
            return dataclasses.replace(lost, status="failed", reason=findings[SOUND]["status"])
        void = findings[self.stage].get("void")
        if void:
            return Score(status="void", reason=void)
        try:
            return self.measure(item, findings)
        except InputError as problem:
            return Score(status="void", reason=str(problem))


def all_metrics(bins: Bins | None, others: Mapping[str, str]) -> list[Metric]:
    """Every metric, in the order of reports.

    Args:
        bins: Boundaries of classes; None leaves pitch, energy and speed without classes.
        others: Stages of judges given by hand.
    """
    return [
        *_error_rates(),
        *_finish(),
        *_similarities(others),
        *_opinions(others),
        *_attributes(bins),
        *_stress(),
        *_pitch(),
        *_levels_and_rates(),
        *_pairs(),
        *_reconstruction(),
        *_speed(),
    ]


def is_mixed(item: Item) -> bool:
    """Whether the words to be spoken are of both scripts."""
    found = tokens(item.transcript, "mixed")
    han = [token for token in found if "\u3400" <= token[0] <= "\u9fff"]
    return bool(han) and any(token not in han and token[0].isalpha() for token in found)


def error_rate(
    name: str, unit: Unit, language: str, *, protocol: str, stage: str = "asr", skip_missing: bool = False
) -> Metric:
    """(substitutions + deletions + insertions) / tokens of the reference, after the unit's normalisation.

    An item without sound is all deletions (or, by protocols that skip it, has no value); one without words is void.
    """

    def measure(item: Item, findings: Findings) -> Score:
        return _counted(item, findings[stage]["heard"], unit)

    return Metric(
        id=name,
        unit="errors a token",
        better="lower",
        protocol=protocol,
        stage=stage,
        measure=measure,
        applies=is_mixed if language == "mixed" else lambda item: item.language == language,
        without_sound=None if skip_missing else lambda item, _: _all_deleted(item, unit),
        normaliser=unit,
    )


def _error_rates() -> list[Metric]:
    whisper = "Whisper's English normaliser, words"
    return [
        error_rate("wer.vox", "word", "en", protocol=f"{whisper}; missing = all deleted"),
        error_rate("cer.vox", "character", "zh", protocol="NFKC, simplified, no marks, characters"),
        error_rate("pinyin.vox", "pinyin", "zh", protocol="as cer.vox, toneless pinyin syllables"),
        error_rate("mer.vox", "mixed", "mixed", protocol="NFKC; a Han character or a Latin word is a token"),
        error_rate(
            "wer.seed_tts_en",
            "seed_en",
            "en",
            protocol="Seed-TTS-eval run_wer.py @752f429: marks removed, no numbers written out; missing files skipped",
            stage="asr.large",
            skip_missing=True,
        ),
        error_rate(
            "cer.seed_tts_zh",
            "seed_zh",
            "zh",
            protocol="Seed-TTS-eval run_wer.py @752f429, OpenCC in place of zhconv; missing files skipped",
            stage="asr.paraformer",
            skip_missing=True,
        ),
    ]


def _counted(item: Item, heard: str, unit: Unit) -> Score:
    if not item.transcript:
        raise InputError("no transcript, so nobody knows what should have been said")
    found = error_counts(item.transcript, heard, item.language, unit)
    kinds = {name: float(getattr(found, name)) for name in ("substitutions", "deletions", "insertions")}
    return Score(n=float(found.errors), d=float(found.length), parts=kinds)


def _all_deleted(item: Item, unit: Unit) -> Score:
    try:
        return _counted(item, "", unit)
    except InputError:
        return Score()


# --- how an utterance ends -------------------------------------------------------------------------------------------


def finish_flags(item: Item, findings: Findings) -> dict[str, bool]:
    """What went wrong with an utterance as a whole; rules in the protocols of the metrics of the same names."""
    sound = findings[SOUND]
    if sound["status"] != "ok":
        return {"missing": sound["status"] == "missing", "corrupt": sound["status"] != "missing"}
    heard = findings.get("asr", {}).get("heard")
    unit: Unit = "word" if item.language == "en" else "character"
    said, found = tokens(item.transcript, unit), tokens(heard or "", unit)
    usual_s = count_syllables(item.transcript) * SECONDS_A_SYLLABLE.get(item.language, 0.2) if item.transcript else 0.0
    runaway = item.finish_reason.startswith("max_") or (usual_s > 0 and sound["active_s"] > LONGEST_FACTOR * usual_s)
    if heard is not None:
        runaway |= _compression(heard) > LARGEST_COMPRESSION
        runaway |= bool(said) and len(found) > LONGEST_HEARD * len(said) + 1
    unheard = heard is not None and len(said) >= REPEATED and _tail_deleted(item.transcript, heard, unit)
    return {
        "runaway": bool(runaway),
        "truncated": bool(unheard or (usual_s > 0 and sound["active_s"] < SHORTEST_FACTOR * usual_s)),
        "silent": sound["peak_db"] < SILENT_PEAK_DB or sound["active_s"] < SILENT_S,
        "repetition": _repeats(said, found),
        "clipped": sound["clipped"] > CLIPPED_SHARE,
        "missing": False,
        "corrupt": False,
    }


_FINISH_RULES = {
    "runaway": "length limit reached, or active time > 3 x expected (.22 s EN, .19 s ZH a syllable), or text "
    "compresses over 2.4 times, or over twice as many tokens heard as asked (and one more)",
    "truncated": "last 3 tokens not heard, or active time < .4 x expected",
    "silent": "peak below -50 dBFS or less than .2 s active",
    "repetition": "three or more tokens in a row heard three times or more, and oftener than asked",
    "clipped": "over .1 % of samples at full scale",
    "missing": "no file",
    "corrupt": "not readable as sound, empty, or holding NaN",
}


def _finish() -> list[Metric]:
    def share(name: str, rule: str) -> Metric:
        def measure(item: Item, findings: Findings) -> Score:
            flags = finish_flags(item, findings)
            return Score(n=float(flags[name]) if name in flags else None)

        return Metric(
            id=name, unit="share", better="lower", protocol=rule, stage=SOUND, measure=measure, without_sound=measure
        )

    return [share(name, rule) for name, rule in _FINISH_RULES.items()]


def _compression(text: str) -> float:
    plain = text.encode()
    return len(plain) / len(zlib.compress(plain)) if plain else 0.0


def _tail_deleted(transcript: str, heard: str, unit: Unit) -> bool:
    kinds = [kind for kind, expected, _ in align(transcript, heard, unit) if expected]
    return set(kinds[-REPEATED:]) == {"D"}


def _repeats(said: list[str], found: list[str]) -> bool:
    """An n-gram of n >= 3 tokens repeats exactly if some 3-gram does."""
    asked, heard = (
        Counter(tuple(text[start : start + REPEATED]) for start in range(len(text) - REPEATED + 1))
        for text in (said, found)
    )
    return any(count >= REPEATED and count > asked[gram] for gram, count in heard.items())


# --- voice, naturalness ----------------------------------------------------------------------------------------------


def _similarities(others: Mapping[str, str]) -> list[Metric]:
    stages = dict.fromkeys(("similarity.vox", "similarity.wavlm_sv", "similarity.emotion"))
    stages |= dict.fromkeys(name for name in others if name.startswith("similarity."))

    def cosine(stage: str, which: str) -> Metric:
        def measure(item: Item, findings: Findings) -> Score:
            found = findings[stage]
            return Score(n=float(np.dot(found["clip"], found[which])))

        return Metric(
            id=f"{stage}.{which}",
            unit="cosine",
            better="higher",
            protocol=f"cosine of the embeddings of clip and {_SIDES[which]}, 16 kHz, pauses cut, -30 dBFS"
            if stage == "similarity.vox"
            else f"cosine of the embeddings of clip and {_SIDES[which]}",
            stage=stage,
            measure=measure,
            applies=lambda item: bool(item.prompt if which == "prompt" else item.reference_audio),
            worst=0.0,
            tie=0.01,
        )

    return [cosine(stage, which) for stage in stages for which in _SIDES]


_SIDES = {"prompt": "voice prompt", "reference": "reference recording"}


def _opinions(others: Mapping[str, str]) -> list[Metric]:
    def score(stage: str, name: str, key: str, unit: str, protocol: str) -> Metric:
        return Metric(
            id=name,
            unit=unit,
            better="higher",
            protocol=protocol,
            stage=stage,
            measure=lambda item, findings: Score(n=findings[stage][key]),
            worst=1.0 if unit.startswith("MOS") else 0.0,
            tie=0.05,
        )

    dnsmos = [
        score(
            "mos.dnsmos",
            f"mos.dnsmos.{name}",
            name,
            "MOS 1-5",
            "DNSMOS "
            + ("P.808" if name == "p808" else "P.835")
            + ", windows of 9.01 s a second apart; void below 1 s of "
            "speech; missing = 1",
        )
        for name in DNSMOS_SCORES
    ]
    known = ("mos.utmos", "mos.distillmos", "clap.laion")
    names = dict.fromkeys([*known, *(name for name in others if name.startswith(("mos.", "clap.")))])
    return dnsmos + [
        score(name, name, "score", "MOS 1-5" if name.startswith("mos.") else "cosine", "as the judge has it")
        for name in names
    ]


# --- what was asked for ----------------------------------------------------------------------------------------------


def _attributes(bins: Bins | None) -> list[Metric]:
    return [_accuracy(name, bins) for name in ATTRIBUTES if name != "stress"]


def _accuracy(attribute: str, bins: Bins | None) -> Metric:
    """Share of items whose judged class is the one that was asked for (VoxInstruct, table 2)."""

    def measure(item: Item, findings: Findings) -> Score:
        judged = judged_class(attribute, item, findings[attribute_stage(attribute)], bins)
        return Score(n=float(judged == item.attributes[attribute]))

    return Metric(
        id=attribute_stage(attribute),
        unit="accuracy",
        better="higher",
        protocol="class judged = class asked for" + (", boundaries of bins.json" if attribute in CLASSES else ""),
        stage=attribute_stage(attribute),
        measure=measure,
        applies=lambda item: isinstance(item.attributes.get(attribute), str),
        worst=0.0,
        bins=attribute in CLASSES,
    )


def judged_class(attribute: str, item: Item, evidence: Evidence, bins: Bins | None) -> str:
    """The class that a judge gave, or that boundaries give its value.

    Raises:
        InputError: It has neither a class nor boundaries of its group.
    """
    if "label" in evidence:
        return evidence["label"]
    gender = item.attributes.get("gender")
    own = group(attribute, item.language, gender if isinstance(gender, str) else None)
    found = classify(bins, attribute, own, evidence["value"], evidence.get("error", 0.0)) if bins else None
    if found is None:
        raise InputError(f"no boundaries of {attribute} for {own}: give --bins bins.json of the training data")
    return found[0]


def _stress() -> list[Metric]:
    """Stressed words as indices into the words of the transcript (VoxInstruct, section 5.4, states no formula)."""
    stage = attribute_stage("stress")

    def sets(item: Item, findings: Findings) -> tuple[set[int], set[int], int]:
        words = len(split_words(item.transcript))
        asked = {index for index in item.attributes["stress"] if index < words}
        return asked, {int(index) for index in findings[stage].get("label", "").split()}, words

    def ratio(name: str, protocol: str, count: Callable[[set[int], set[int], int], tuple[float, float]]) -> Metric:
        def measure(item: Item, findings: Findings) -> Score:
            n, d = count(*sets(item, findings))
            return Score(n=float(n), d=float(d))

        def lost(item: Item, findings: Findings) -> Score:
            n, d = count(sets(item, {stage: {}})[0], set(), len(split_words(item.transcript)))
            return Score(n=0.0 if name != "stress.baseline_none" else float(n), d=float(d))

        return Metric(
            id=name,
            unit="accuracy",
            better="higher" if name != "stress.baseline_none" else "",
            protocol=protocol,
            stage=stage,
            measure=measure,
            applies=lambda item: "stress" in item.attributes,
            without_sound=lost,
        )

    return [
        ratio("stress.word_accuracy", "words judged right / words", lambda r, p, n: (n - len(r ^ p), n)),
        ratio("stress.baseline_none", "word accuracy of judging no word stressed", lambda r, p, n: (n - len(r), n)),
        ratio("stress.word_recall", "stressed words found / stressed words", lambda r, p, n: (len(r & p), len(r))),
        ratio("stress.word_precision", "stressed words found / words found", lambda r, p, n: (len(r & p), len(p))),
        ratio("stress.word_f1", "2 hits / (stressed + found)", lambda r, p, n: (2 * len(r & p), len(r) + len(p))),
        ratio("stress.sentence", "sentences with exactly the stressed words found", lambda r, p, n: (float(r == p), 1)),
    ]


# --- prosody ---------------------------------------------------------------------------------------------------------


def _plain(name: str, unit: str, stage: str, key: str, protocol: str, **more: Any) -> Metric:
    """A number as the stage has it."""

    def measure(item: Item, findings: Findings) -> Score:
        value = findings[stage].get(key)
        return Score(status="void", reason=more_reason) if value is None else Score(n=float(value))

    more_reason = "nothing voiced, or nothing that can be compared"
    return Metric(
        id=name, unit=unit, better=more.pop("better", ""), protocol=protocol, stage=stage, measure=measure, **more
    )


def _pitch() -> list[Metric]:
    rows = (
        ("f0.median", "Hz", "median_hz", "median of voiced frames"),
        ("f0.mean", "Hz", "mean_hz", "mean of voiced frames"),
        ("f0.sd", "Hz", "sd_hz", "standard deviation"),
        ("f0.sd_st", "st", "sd_st", "standard deviation about the median"),
        ("f0.span_st", "st", "span_st", "from the 5th to the 95th percentile"),
        ("f0.slope", "st/s", "slope_st_s", "of a line through voiced frames"),
        ("f0.voiced", "fraction", "voiced", "frames of confidence > .5"),
    )
    return [
        _plain(name, unit, "pitch", key, f"swift-f0, 60 to 500 Hz, 16 ms: {what}") for name, unit, key, what in rows
    ]


def _levels_and_rates() -> list[Metric]:
    rows = (
        ("energy.active", "dBFS", "active_db", "mean level of 25 ms frames within 40 dB of the loudest"),
        ("energy.peak", "dBFS", "peak_db", "largest sample"),
        ("energy.range", "dB", "range_db", "5th to 95th percentile of active frames"),
        ("pause.count", "pauses", "pauses", "quiet (40 dB below the loudest) of over .2 s"),
        ("pause.mean", "s", "pause_mean_s", "as pause.count"),
        ("pause.longest", "s", "pause_longest_s", "as pause.count"),
        ("length.duration", "s", "whole_s", "of the file"),
        ("length.leading_silence", "s", "leading_s", "before the first active frame"),
        ("length.trailing_silence", "s", "trailing_s", "behind the last active frame"),
    )
    rates = [
        _rate("rate.active", "active_s", "time from the first to the last active frame"),
        _rate("rate.net", "net_s", "the same without pauses of over .2 s"),
    ]
    return [*(_plain(name, unit, SOUND, key, what) for name, unit, key, what in rows), *rates]


def _rate(name: str, key: str, over: str) -> Metric:
    """Words (English) or characters (Mandarin) a second."""

    def measure(item: Item, findings: Findings) -> Score:
        unit: Unit = "word" if item.language == "en" else "character"
        said, seconds = tokens(item.transcript, unit), findings[SOUND][key]
        heard = findings.get("asr", {}).get("heard")
        if not said or seconds <= 0:
            return Score(status="void", reason="no words, or no sound above silence")
        if heard is not None and error_counts(item.transcript, heard, item.language, unit).rate > UNHEARD_WER:
            return Score(status="void", reason="over a fifth of the words were not heard")
        return Score(n=float(len(said)), d=seconds)

    return Metric(
        id=name,
        unit="words/s EN, characters/s ZH",
        better="",
        protocol=f"tokens of the transcript over {over}; void where WER > .2",
        stage=SOUND,
        measure=measure,
        applies=lambda item: item.language in ("en", "zh"),
    )


# --- against a reference ---------------------------------------------------------------------------------------------


def _with_reference(item: Item) -> bool:
    return item.reference_audio is not None


def _pairs() -> list[Metric]:
    path = "along the warping path of mcd.vox"
    rows = (
        ("mcd.vox", "dB", "mcd_db", "lower", "10/ln10 sqrt2 mean|c-c'|, WORLD at 16 kHz, 5 ms, c1-c24, warp .42, "
         "envelope floored at -60 dB, exact DTW, frames within 40 dB of the loudest"),
        ("mcd.path_ratio", "ratio", "path_ratio", "lower", "steps of that path over frames of the longer clip"),
        ("f0.rmse_hz", "Hz", "rmse_hz", "lower", f"{path}, both voiced"),
        ("f0.rmse_cents", "cents", "rmse_cents", "lower", f"{path}, both voiced"),
        ("f0.correlation", "correlation", "correlation", "higher", f"of log F0 {path}, both voiced"),
        ("f0.gpe20", "fraction", "gpe20", "lower", f"off by over 20 % {path}, both voiced"),
        ("f0.vde", "fraction", "vde", "lower", f"voicing differs {path}"),
        ("f0.ffe", "fraction", "ffe", "lower", f"gross pitch or voicing error {path}"),
        ("length.ratio", "ratio", "ratio", "", "duration over that of the reference"),
    )  # fmt: skip
    found = [
        _plain(name, unit, "pair", key, what, better=better, applies=_with_reference)
        for name, unit, key, better, what in rows
    ]
    log = Metric(
        id="length.log_ratio",
        unit="ln",
        better="lower",
        protocol="|ln| of length.ratio",
        stage="pair",
        measure=lambda item, findings: Score(n=abs(float(np.log(max(findings["pair"]["ratio"], 1e-6))))),
        applies=_with_reference,
    )
    return [*found, log]


def _reconstruction() -> list[Metric]:
    rows = (
        ("stoi", "0-1", "higher", "STOI, pystoi"),
        ("estoi", "0-1", "higher", "extended STOI, pystoi"),
        ("mel_l1", "ln", "lower", "mean |ln M - ln M'|, 80 mel magnitudes, 1024/256"),
        ("spectral_convergence", "ratio", "lower", "|R-E|/|R| over three resolutions"),
        ("log_magnitude", "ln", "lower", "mean |ln R - ln E| over three resolutions"),
        ("lsd", "log10", "lower", "log-spectral distance, 2048/512"),
        ("si_sdr", "dB", "higher", "scale-invariant SDR; means nothing for generative decoders"),
    )
    where = "; 16 kHz, same length, aligned by up to 50 ms"
    found = [
        _plain(
            f"reconstruction.{name}", unit, "reconstruction", name, what + where, better=better, applies=_with_reference
        )
        for name, unit, better, what in rows
    ]
    pesq = _plain(
        "reconstruction.pesq_wb",
        "MOS-LQO",
        "pesq",
        "wb",
        f"PESQ wide band{where}",
        better="higher",
        applies=_with_reference,
    )
    return [*found, pesq]


# --- compute ---------------------------------------------------------------------------------------------------------


def _speed() -> list[Metric]:
    def rtf(item: Item, findings: Findings) -> Score:
        assert item.synthesis_s is not None
        return Score(n=item.synthesis_s, d=findings[SOUND]["whole_s"])

    def predicted(item: Item, findings: Findings) -> Score:
        return Score(n=float(item.language_predicted == item.language))

    return [
        Metric(
            id="language.predicted",
            unit="accuracy",
            better="higher",
            protocol="language that the system chose = that of the words",
            stage=SOUND,
            measure=predicted,
            applies=lambda item: item.language_predicted is not None,
            worst=0.0,
        ),
        Metric(
            id="rtf",
            unit="s/s",
            better="lower",
            protocol="synthesis seconds over audio seconds, as the results have them; compile time may be in it",
            stage=SOUND,
            measure=rtf,
            applies=lambda item: item.synthesis_s is not None,
        ),
    ]
