"""Metrics of words: error rates, by which protocol, and how an utterance ends. Read `error_rate`, then `finish_flags`.

Source:
    VoxInstruct, section 5.1 (WER); Seed-TTS-eval (its two error rates). The rules of flags are this project's.
"""

import operator
import zlib
from collections import Counter
from collections.abc import Mapping

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.annotate import count_syllables
from voxinstruct_jax.evaluation.items import Item
from voxinstruct_jax.evaluation.score import Findings, Metric, Score
from voxinstruct_jax.evaluation.stages import SOUND
from voxinstruct_jax.judges.tones import expected_tones
from voxinstruct_jax.judges.transcripts import Unit, align, error_counts, tokens
from voxinstruct_jax.text.normalizer import has_han

__all__ = ["FLAGS", "error_rate", "finish_flags", "is_mixed", "word_metrics"]

SECONDS_A_SYLLABLE = {"en": 0.22, "zh": 0.19}
"""Medians of the generated corpus at normal speed; a project choice, part of the flags' protocol."""
LONGEST_FACTOR, SHORTEST_FACTOR = 3.0, 0.4
LARGEST_COMPRESSION = 2.4
LONGEST_HEARD = 2.0
REPEATED = 3
SILENT_PEAK_DB, SILENT_S = -50.0, 0.2
CLIPPED_SHARE = 1e-3
UNHEARD_RATE = 0.2
"""Above it nobody knows which syllables were spoken, so their tones mean nothing."""
FLAGS = "flags"
"""Where among findings `finish_flags` stand: they are counted once an item."""
PUBLISHED_RECOGNISERS = ("asr.large", "asr.paraformer")
"""Of protocols that have metrics of their own."""


def word_metrics(others: Mapping[str, str]) -> list[Metric]:
    """Error rates and flags.

    Args:
        others: Stages of judges given by hand.
    """
    return [*_error_rates(), *_of_other_recognisers(others), _tones(), _language_heard(), *_finish()]


def is_mixed(item: Item) -> bool:
    """Whether the words to be spoken are of both scripts."""
    found = tokens(item.transcript, "mixed")
    han = [token for token in found if has_han(token)]
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


def _of_other_recognisers(others: Mapping[str, str]) -> list[Metric]:
    """Plain error rates by each further recogniser that was given: `asr.mine` counts `wer.mine` and `cer.mine`."""
    kinds: tuple[tuple[str, Unit, str], ...] = (("wer", "word", "en"), ("cer", "character", "zh"))
    return [
        error_rate(f"{kind}.{stage.partition('.')[2]}", unit, language, protocol=f"as {kind}.vox", stage=stage)
        for stage in others
        if stage.startswith("asr.") and stage not in PUBLISHED_RECOGNISERS
        for kind, unit, language in kinds
    ]


def _tones() -> Metric:
    """A recogniser forgives wrong tones where the sentence tells the character; this hears pitch alone."""

    def measure(item: Item, findings: Findings) -> Score:
        said, heard = findings["tone"]["expected"], findings["tone"]["heard"]
        words = findings.get("asr", {}).get("heard")
        if words is not None and error_counts(item.transcript, words, "zh", "pinyin").rate > UNHEARD_RATE:
            raise InputError("over a fifth of the syllables were not heard")
        if not said:
            raise InputError("no voiced syllable with a tone")
        return Score(n=float(sum(map(operator.eq, said, heard))), d=float(len(said)))

    return Metric(
        id="tone.accuracy",
        unit="accuracy",
        better="higher",
        protocol="tones 1 to 4 heard by pitch alone = those of the dictionary after sandhi; voiced syllables; void "
        "where a fifth of the syllables was not heard",
        stage="tone",
        measure=measure,
        applies=lambda item: item.language == "zh" and bool(item.transcript) and not is_mixed(item),
        without_sound=lambda item, _: Score(n=0.0, d=float(sum(map(bool, expected_tones(item.transcript))))),
    )


def _language_heard() -> Metric:
    def measure(item: Item, findings: Findings) -> Score:
        return Score(n=float(findings["language"]["language"] == item.language))

    return Metric(
        id="language.heard",
        unit="accuracy",
        better="higher",
        protocol="language that Whisper finds likeliest in the first 30 s = that of the words; void below 1 s of "
        "speech; not of texts in two scripts",
        stage="language",
        measure=measure,
        applies=lambda item: bool(item.language) and not is_mixed(item),
        worst=0.0,
    )


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
            flags = findings[FLAGS]
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
