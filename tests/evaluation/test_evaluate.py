import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.data.engines import open_engine
from voxinstruct_jax.evaluation.evaluate import EvaluationRequest, evaluate
from voxinstruct_jax.evaluation.evidence import in_this_process
from voxinstruct_jax.judges.bins import AttributeBins, Bins, Bounds, save_bins

RATE = 16_000
PARROT = {"asr": "stub_judges:Parrot"}
ERRORS = (
    "wer",
    "cer",
    "pinyin",
    "mer",
    "runaway",
    "truncated",
    "repetition",
    "missing",
    "corrupt",
    "silent",
    "clipped",
)


def run(spoken, out, *, metrics=ERRORS, judges=PARROT, **settings):
    """Evaluates, and gives the rows over everything by metric."""
    source = settings.pop("source", spoken.folder)
    request = EvaluationRequest(source=source, out=out, metrics=metrics, judges=judges, **settings)
    done = evaluate(request, in_this_process, progress=False)
    return {row.metric: row for row in done.rows if row.slice == "all"}


def lines(out, name="items.jsonl"):
    return [json.loads(line) for line in (out / name).read_text("utf-8").splitlines()]


# --- error rates -----------------------------------------------------------------------------------------------------


def test_corpus_rate_adds_errors_before_dividing_and_its_variants_do_not(spoken, tmp_path):
    spoken.add("a", "a", "b c d e f")
    spoken.add("b", "one cat sat on that mat by our old door", "one cat sat on that mat by our old door")
    rows = run(spoken, tmp_path / "out")
    assert rows["wer.vox"].value == pytest.approx(5 / 11, abs=1e-5)
    assert (rows["wer.vox"].evaluated, rows["wer.vox"].total) == (2, 2)
    assert rows["wer.vox.mean"].value == 2.5
    assert rows["wer.vox.capped"].value == 0.5
    assert rows["wer.vox.le50"].value == 0
    assert (rows["wer.vox.le50"].evaluated, rows["wer.vox.over50"].value) == (1, 0.5)
    assert rows["wer.vox.insertions"].value == pytest.approx(4 / 11, abs=1e-5)
    assert "parrot/1/pieces28s; whisper-english" in rows["wer.vox"].judge


def test_mandarin_gets_characters_and_toneless_pinyin_and_a_mixed_text_both_kinds_of_token(spoken, tmp_path):
    spoken.add("a", "他买了碗。", "她买了晚", language="zh")
    spoken.add("b", "我有 iPhone 了", "我有 iPhone 吗", language="zh")
    rows = run(spoken, tmp_path / "out")
    assert rows["cer.vox"].value == pytest.approx(3 / 13, abs=1e-5)
    assert rows["pinyin.vox"].value == pytest.approx(1 / 8, abs=1e-5)
    assert (rows["mer.vox"].value, rows["mer.vox"].total) == (0.25, 1)
    assert "wer.vox" not in rows


def test_swapped_transcripts_are_errors_throughout(spoken, tmp_path):
    texts = ["red birds sing", "four cold winters passed", "we sailed home at dawn", "nobody answered her"]
    for place, text in enumerate(texts):
        spoken.add(f"clip-{place}", text, texts[place - 1])
    rows = run(spoken, tmp_path / "out")
    assert rows["wer.vox"].value >= 1
    assert rows["wer.vox.over50"].value == 1


def test_a_hypothesis_that_runs_away_explodes_the_corpus_rate_alone(spoken, tmp_path):
    said = "we sailed home at dawn"
    for place in range(9):
        spoken.add(f"clip-{place}", said, said)
    spoken.add("long", said, " ".join([said] * 100))
    rows = run(spoken, tmp_path / "out")
    assert rows["wer.vox"].value == pytest.approx(9.9)
    assert rows["wer.vox.no_runaways"].value == rows["wer.vox.le50"].value == 0
    assert rows["wer.vox.capped"].value == 0.1
    assert (rows["runaway"].value, rows["repetition"].value) == (0.1, 0.1)
    assert lines(tmp_path / "out")[-1]["evidence"]["flags"] == ["repetition", "runaway"]


def test_cut_speech_is_truncated_and_a_limit_is_a_runaway(spoken, tmp_path):
    spoken.add("cut", "please say the number after the long tone now", "please say the number")
    spoken.add("limit", "yes please", "yes please", finish_reason="max_acoustic")
    spoken.add("fine", "yes please", "yes please")
    run(spoken, tmp_path / "out")
    flags = {line["id"]: line["evidence"]["flags"] for line in lines(tmp_path / "out")}
    assert flags == {"cut": ["truncated"], "limit": ["runaway"], "fine": []}


def test_missing_and_damaged_sound_counts_as_all_deleted_and_is_told_apart(spoken, tmp_path):
    for place in range(3):
        spoken.add(f"fine-{place}", "red green blue", "red green blue")
    spoken.add("gone", "red green blue", "", sound=False)
    spoken.add("torn", "red green blue", "").write_bytes(b"RIFF and no more")
    spoken.add("empty", "red green blue", "").write_bytes(b"")
    spoken.add("wordless", "", "something")
    rows = run(spoken, tmp_path / "out")
    assert rows["wer.vox"].value == 0.5
    assert (rows["wer.vox"].evaluated, rows["wer.vox"].total) == (6, 7)
    assert (rows["wer.vox"].failed, rows["wer.vox"].void) == (3, 1)
    assert rows["wer.vox.present"].value == 0
    assert (rows["missing"].value, rows["corrupt"].value) == pytest.approx((1 / 7, 2 / 7), abs=1e-5)
    found = {line["id"]: line["metrics"]["wer.vox"] for line in lines(tmp_path / "out")}
    assert (found["gone"]["status"], found["gone"]["value"], found["torn"]["reason"]) == ("failed", 1, "corrupt")
    assert "no transcript" in found["wordless"]["reason"]


def test_a_runaway_is_heard_for_a_minute_in_pieces_cut_where_it_is_quiet(spoken, tmp_path):
    path = spoken.add("long", "so", "", seconds=61)
    samples, _ = soundfile.read(path)
    samples[10 * RATE : 10 * RATE + 800] = 0
    soundfile.write(path, samples, RATE)
    rows = run(spoken, tmp_path / "out", metrics=("wer.vox", "length", "runaway"), judges={"asr": f"{__name__}:Pieces"})
    assert sum(Pieces.lengths) == 60 * RATE
    assert max(Pieces.lengths) <= 28 * RATE
    assert Pieces.lengths[0] == pytest.approx(10 * RATE + 400, abs=800)
    assert rows["wer.vox"].value == len(Pieces.lengths) - 1
    assert rows["length.duration"].value == pytest.approx(61)
    assert rows["runaway"].value == 1


class Pieces:
    """Remembers how long what it heard was."""

    fingerprint = "pieces/1"
    lengths: list[int] = []  # noqa: RUF012 - of one test

    def transcribe(self, samples, sample_rate, language=None):
        self.lengths.append(len(samples))
        return "so"


def test_error_rates_stand_beside_those_of_a_reference_voice(spoken, tmp_path):
    said = ["red birds sing", "four cold winters passed", "we sailed home at dawn"]
    for place, text in enumerate(said):
        spoken.add(f"clip-{place}", text, text.replace("s", "z"))
    reference = tmp_path / "reference"
    reference.mkdir()
    rows = []
    for place, text in enumerate(said[:2]):
        soundfile.write(reference / f"{place}.wav", np.full(int((2 + place) * RATE), 0.1), RATE)
        spoken.texts[f"{2 + place:.2f}"] = text if place else "bed birds sing"
        rows.append({"id": f"other-{place}", "audio": f"{place}.wav", "transcript": text.upper(), "language": "en"})
    spoken.write()
    (reference / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run(spoken, tmp_path / "out", reference=reference)
    assert found["wer.vox.reference"].value == pytest.approx(1 / 7, abs=1e-5)
    assert found["wer.vox.excess"].value == pytest.approx(3 / 7, abs=1e-5)
    assert (found["wer.vox.excess"].evaluated, found["wer.vox.excess"].total) == (2, 3)


def test_the_language_that_is_heard_is_compared_with_that_of_the_words(spoken, tmp_path):
    spoken.add("a", "yes it is", "对", language="en")
    spoken.add("b", "no", "no", language="en")
    spoken.add("c", "对", "对", language="zh")
    spoken.add("mixed", "我有 iPhone 了", "我有 iPhone 了", language="zh")
    judges = {**PARROT, "language": "stub_judges:Linguist"}
    rows = run(spoken, tmp_path / "out", metrics=("language.heard",), judges=judges)
    assert rows["language.heard"].value == pytest.approx(2 / 3, abs=1e-5)
    assert rows["language.heard"].total == 3


def test_a_further_recogniser_has_rates_of_its_own(spoken, tmp_path):
    spoken.add("a", "yes it is", "yes it was")
    rows = run(spoken, tmp_path / "out", judges={**PARROT, "asr.mine": "stub_judges:Mute"})
    assert (rows["wer.vox"].value, rows["wer.mine"].value) == (pytest.approx(1 / 3, abs=1e-5), 1)


# --- odd sound -------------------------------------------------------------------------------------------------------


def test_odd_sound_gets_a_status_and_no_traceback(spoken, tmp_path):
    pytest.importorskip("speechmos")
    import soxr

    white = 0.3 * np.random.default_rng(0).standard_normal(2 * RATE).clip(-3, 3)
    sounds = {
        "silence": (np.zeros(2 * RATE), RATE),
        "noise": (white, RATE),
        "short": (white[: RATE // 5], RATE),
        "nan": (np.full(RATE, np.nan), RATE),
        "eight": (np.tile(white[:, None], 8), RATE),
        "high": (soxr.resample(white, RATE, 12 * RATE), 12 * RATE),
    }
    for name, (samples, rate) in sounds.items():
        path = spoken.add(name, "some words", "")
        soundfile.write(path, samples, rate, subtype="FLOAT")
    for seconds in ("2.00", "0.20"):
        spoken.texts[seconds] = ""
    spoken.write()
    metrics = ("wer", "mos.dnsmos.ovrl", "f0", "energy", "rate", "length", "silent", "corrupt")
    rows = run(spoken, tmp_path / "out", metrics=metrics)
    found = {line["id"]: line for line in lines(tmp_path / "out")}
    assert found["silence"]["evidence"]["flags"] == ["silent", "truncated"]
    assert found["nan"]["evidence"]["flags"] == ["corrupt"]
    status = {name: line["metrics"]["mos.dnsmos.ovrl"]["status"] for name, line in found.items()}
    assert {name for name, each in status.items() if each == "void"} == {"silence", "short"}
    assert status["nan"] == "failed"
    assert found["silence"]["metrics"]["f0.median"]["status"] == "void"
    for copy in ("eight", "high"):
        for metric in ("energy.active", "mos.dnsmos.ovrl"):
            same = found["noise"]["metrics"][metric]["value"]
            assert found[copy]["metrics"][metric]["value"] == pytest.approx(
                same, abs=0.6
            )  # resampling takes off the top
    assert rows["wer.vox"].value == 1


def test_levels_and_rates_are_as_made(spoken, tmp_path):
    tone = np.sin(2 * np.pi * 220 * np.arange(RATE) / RATE)
    pause = np.zeros(RATE // 2)
    for name, samples in {
        "loud": 0.5 * tone,
        "soft": 0.25 * tone,
        "broken": np.r_[pause, tone, pause, tone, pause],
    }.items():
        soundfile.write(
            spoken.add(name, "red green blue white", "red green blue white"), samples, RATE, subtype="FLOAT"
        )
    spoken.texts |= {"1.00": "red green blue white", "3.50": "red green blue white"}
    spoken.write()
    run(spoken, tmp_path / "out", metrics=("energy", "rate", "pause", "length", "f0", "wer"))
    found = {
        line["id"]: {name: one["value"] for name, one in line["metrics"].items()} for line in lines(tmp_path / "out")
    }
    assert found["loud"]["energy.active"] - found["soft"]["energy.active"] == pytest.approx(6.02, abs=0.01)
    assert found["loud"]["energy.active"] == pytest.approx(-9.03, abs=0.2)
    assert found["loud"]["rate.active"] == pytest.approx(4, abs=0.1)
    assert found["broken"]["rate.active"] == pytest.approx(4 / 2.5, rel=0.03)
    assert found["broken"]["rate.net"] == pytest.approx(2, rel=0.05)
    assert (found["broken"]["pause.count"], found["broken"]["pause.longest"]) == (1, pytest.approx(0.5, abs=0.05))
    assert found["broken"]["length.leading_silence"] == pytest.approx(0.5, abs=0.03)
    assert found["loud"]["f0.median"] == pytest.approx(220, rel=0.01)


# --- what was asked for ----------------------------------------------------------------------------------------------


def test_classes_follow_given_boundaries_and_order_needs_none(spoken, tmp_path):
    for place, (asked, hertz) in enumerate({"low": 100, "normal": 250, "high": 200}.items()):
        time_s = np.arange(RATE) / RATE
        saw = 0.3 * (2 * ((time_s * hertz) % 1) - 1)
        path = spoken.add(f"{place}", "one two three four five", "", attributes={"pitch": asked, "gender": "female"})
        soundfile.write(path, saw, RATE)
    judge = run(spoken, tmp_path / "first", metrics=("attribute.pitch",), judges={})
    assert (judge["attribute.pitch"].evaluated, judge["attribute.pitch"].total) == (0, 3)
    assert "--bins" in judge["attribute.pitch"].note
    assert judge["order.pitch"].value == pytest.approx(2 / 3, abs=1e-5)
    groups = {"en/female": Bounds(lower=150.0, upper=220.0, count=100)}
    bins = Bins(corpus="x", attributes={"pitch": AttributeBins(judge="any", unit="Hz", groups=groups)})
    save_bins(tmp_path / "bins.json", bins)
    rows = run(spoken, tmp_path / "second", metrics=("attribute.pitch",), judges={}, bins=tmp_path / "bins.json")
    assert rows["attribute.pitch"].value == pytest.approx(1 / 3, abs=1e-5)
    assert bins.fingerprint in rows["attribute.pitch"].judge
    summary = json.loads((tmp_path / "second" / "summary.json").read_text())
    assert rows["attribute.pitch.strict"].evaluated == 3
    near = Bins(corpus="x", attributes={"pitch": AttributeBins(judge="any", unit="Hz", groups={
        "en/female": Bounds(lower=103.0, upper=220.0, count=100)})})  # fmt: skip
    save_bins(tmp_path / "bins.json", near)
    strict = run(spoken, tmp_path / "second", metrics=("attribute.pitch",), judges={}, bins=tmp_path / "bins.json")
    assert (strict["attribute.pitch"].evaluated, strict["attribute.pitch.strict"].evaluated) == (3, 2)
    assert strict["attribute.pitch.strict"].void == 1
    assert summary["confusion"]["pitch"] == {"low": {"low": 1}, "normal": {"high": 1}, "high": {"normal": 1}}
    assert rows["attribute.pitch.macro_recall"].value == rows["attribute.mean"].value == pytest.approx(1 / 3, abs=1e-5)


class Stress:
    """Finds the words whose numbers the length of the clip spells: 1.23 s = words 2 and 3."""

    attribute, name, unit = "stress", "spelt/1", ""

    def measure(self, clip):
        from voxinstruct_jax.judges.judge import Measurement

        digits = f"{len(clip.samples) / clip.sample_rate:.2f}"[2:]
        likeliest = [float(str(place) == digits[-1]) for place in range(10)]
        label = " ".join(sorted({digit for digit in digits if digit != "0"}))
        return Measurement(label=label, probabilities=tuple(likeliest))


def test_stress_is_counted_by_words_and_sentences_beside_judging_none(spoken, tmp_path):
    sentence = "zero one two three four five six seven eight nine"
    for name, asked, seconds in (("a", [2], 1.20), ("b", [3], 1.03), ("c", [4], 1.05), ("d", [6, 7], 1.06)):
        spoken.add(name, sentence, "", seconds=seconds, attributes={"stress": asked})
    rows = run(spoken, tmp_path / "out", metrics=("stress",), judges={"stress": f"{__name__}:Stress"})
    values = {name: row.value for name, row in rows.items()}
    assert values["stress.word_accuracy"] == pytest.approx(37 / 40)
    assert values["stress.baseline_none"] == pytest.approx(35 / 40)
    assert values["stress.word_recall"] == pytest.approx(3 / 5)
    assert values["stress.word_precision"] == pytest.approx(3 / 4)
    assert values["stress.word_f1"] == pytest.approx(6 / 9, abs=1e-5)
    assert values["stress.sentence"] == pytest.approx(2 / 4)
    assert values["stress.minimal_pair"] == pytest.approx(1 / 6, abs=1e-5)
    assert values["stress.top1"] == pytest.approx(2 / 4)  # b and d: the likeliest is the last digit
    assert values["stress.baseline_top1"] == pytest.approx(5 / 40)


def test_a_reference_and_a_prompt_are_compared_with(spoken, tmp_path, prompts):
    pytest.importorskip("pyworld")
    pytest.importorskip("pystoi")
    same, other = prompts[0][0][: 2 * RATE], prompts[1][0][: int(1.8 * RATE)]
    for name, samples in {"half": 0.5 * same, "other": other}.items():
        soundfile.write(spoken.add(name, "a b", "", reference_audio="r.flac", prompt="r.flac"), samples, RATE)
    soundfile.write(spoken.folder / "r.flac", same, RATE)
    run(
        spoken,
        tmp_path / "out",
        metrics=("similarity.vox", "mcd.vox", "reconstruction.stoi", "length.ratio"),
        judges={},
    )
    found = {
        line["id"]: {name: one["value"] for name, one in line["metrics"].items()} for line in lines(tmp_path / "out")
    }
    assert found["half"]["similarity.vox.prompt"] == pytest.approx(1, abs=2e-3)
    assert found["half"]["similarity.vox.prompt"] == found["half"]["similarity.vox.reference"]
    assert 0.5 < found["other"]["similarity.vox.prompt"] < 0.98  # one speaker, another sentence
    assert found["half"]["mcd.vox"] == pytest.approx(0, abs=0.1)
    assert found["other"]["mcd.vox"] > 5
    assert found["other"]["length.ratio"] == pytest.approx(len(other) / len(same), rel=1e-4)
    assert found["other"]["reconstruction.stoi"] is None


# --- judges ----------------------------------------------------------------------------------------------------------


def test_a_missing_judge_is_skipped_and_says_what_to_put_where(spoken, tmp_path):
    spoken.add("a", "yes", "yes")
    rows = run(spoken, tmp_path / "out", metrics=("wer", "mos.utmos"))
    for name, wanted in (("wer.seed_tts_en", "asr.large=FOLDER"), ("mos.utmos", "mos.utmos=MODULE:CLASS")):
        assert (rows[name].value, rows[name].evaluated, rows[name].total, rows[name].skipped) == (None, 0, 1, 1)
        assert wanted in rows[name].note


def test_a_judge_of_ones_own_is_used_and_a_broken_one_costs_its_column_only(spoken, tmp_path):
    spoken.add("a", "yes", "yes")
    judges = {**PARROT, "mos.utmos": "stub_judges:Loudness", "mos.mine": "stub_judges:Broken"}
    rows = run(spoken, tmp_path / "out", metrics=("wer.vox", "mos.utmos", "mos.mine"), judges=judges)
    assert rows["mos.utmos"].value == pytest.approx(2.2, abs=0.05)
    assert rows["mos.utmos"].judge == "loudness/1"
    assert rows["mos.mine"].value is None
    assert "ZeroDivisionError: oh no" in rows["mos.mine"].note
    assert rows["wer.vox"].value == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"judges": {"wer": "a:B"}}, "--judge wer: unknown"),
        ({"judges": {"mos.mine": "nowhere:B"}}, "cannot be opened"),
        ({"judges": {"mos.mine": "stub_judges:Parrot"}, "metrics": ("mos.mine",)}, "lacks name, sample_rate, measure"),
        ({"metrics": ("werr",)}, "did you mean"),
    ],
)
def test_wrong_names_are_refused_in_one_line(spoken, tmp_path, settings, message):
    spoken.add("a", "yes", "yes")
    with pytest.raises(ConfigError, match=message):
        run(spoken, tmp_path / "out", **{"metrics": ("wer", "mos"), **settings})


# --- runs ------------------------------------------------------------------------------------------------------------


def test_another_judge_recomputes_its_column_only_and_rounds_are_byte_equal(spoken, tmp_path):
    spoken.add("a", "yes", "yes")
    spoken.add("b", "no", "yes")
    run(spoken, tmp_path / "out", metrics=("wer.vox", "energy"))
    first = (tmp_path / "out" / "items.jsonl").read_bytes()
    spoken.texts.clear()  # the parrot would fail now: nothing is heard twice
    spoken.write()
    run(spoken, tmp_path / "out", metrics=("wer.vox", "energy"))
    assert (tmp_path / "out" / "items.jsonl").read_bytes() == first
    assert str(tmp_path).encode() not in first
    parts = list((tmp_path / "out" / "evidence").rglob("part-*.jsonl"))
    rows = run(spoken, tmp_path / "out", metrics=("wer.vox", "energy"), judges={"asr": "stub_judges:Mute"})
    assert rows["wer.vox"].value == 1
    assert len(list((tmp_path / "out" / "evidence").rglob("part-*.jsonl"))) == len(parts) + 1


def test_nothing_to_judge_is_an_empty_summary(spoken, tmp_path):
    (spoken.folder / "manifest.jsonl").write_text("")
    assert run(spoken, tmp_path / "out") == {}
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["items"] == 0


@pytest.mark.slow
def test_the_number_of_worker_processes_changes_no_byte(spoken, tmp_path):
    for place in range(20):
        spoken.add(f"clip-{place:02d}", "yes", "yes", seconds=1 + 0.05 * place)
    request = EvaluationRequest(source=spoken.folder, out=tmp_path / "out", metrics=("energy", "length"))
    found = []
    for workers in (1, 2):
        own = dataclasses.replace(request, out=tmp_path / str(workers))
        evaluate(own, open_engine("local", workers), progress=False)
        found.append((own.out / "items.jsonl").read_bytes())
    assert found[0] == found[1]
    assert len(found[0].splitlines()) == 20
    assert all(line["metrics"]["energy.active"]["status"] == "ok" for line in lines(tmp_path / "2"))


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_and_ends_with_the_same_bytes(spoken, tmp_path):
    for place in range(20):
        spoken.add(f"clip-{place:02d}", "yes it is", "yes it was")
    program = (
        "import sys; from pathlib import Path; "
        "from voxinstruct_jax.evaluation.evaluate import EvaluationRequest, evaluate; "
        "from voxinstruct_jax.evaluation.evidence import in_this_process; "
        "evaluate(EvaluationRequest(source=Path(sys.argv[1]), out=Path(sys.argv[2]), metrics=('wer.vox',), "
        "judges={'asr': 'stub_judges:Parrot'}), in_this_process, progress=False)"
    )
    here = str(Path(__file__).parent)
    environment = {**os.environ, "VOX_TEST_PACE": "0.3", "PYTHONPATH": os.pathsep.join([here, *sys.path])}
    out = tmp_path / "out"
    killed = subprocess.Popen([sys.executable, "-c", program, str(spoken.folder), str(out)], env=environment)
    while not list(out.glob("evidence/asr/*/part-*.jsonl")):
        assert killed.poll() is None
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (out / "summary.json").exists()
    run(spoken, out, metrics=("wer.vox",))
    run(spoken, tmp_path / "whole", metrics=("wer.vox",))
    assert (out / "items.jsonl").read_bytes() == (tmp_path / "whole" / "items.jsonl").read_bytes()
    assert len(lines(out)) == 20
