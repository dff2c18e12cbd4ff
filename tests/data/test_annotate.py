"""Real clips, real processes: what is measured, what is kept, and that no kill changes a byte."""

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

from voxinstruct_jax.cli.main import main
from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.annotate import Request, annotate, measure_row, spoken_clip
from voxinstruct_jax.data.engines import open_engine
from voxinstruct_jax.data.manifest import Annotation, read_manifest, write_manifest
from voxinstruct_jax.judges.bins import AttributeBins, Bins, Bounds, load_bins, save_bins
from voxinstruct_jax.judges.judge import Measurement
from voxinstruct_jax.judges.prosody import EnergyJudge, SpeedJudge
from voxinstruct_jax.judges.registry import OFFLINE, find_judges, judge_places
from voxinstruct_jax.text.content import spoken_content

CORPUS = pathlib.Path(__file__).parents[1] / "corpus" / "generated" / "manifest.jsonl"
ROOT = pathlib.Path(__file__).parents[2]
CHEAP = ("energy", "speed")


@pytest.fixture(scope="module")
def known():
    return read_manifest(CORPUS)


def bare(rows):
    """Rows with nothing but their sound and words."""
    return [dataclasses.replace(row, attributes={}, instructions=()) for row in rows]


@pytest.fixture
def manifest(tmp_path, known):
    write_manifest(tmp_path / "in.jsonl", bare(known[:8]))
    return tmp_path / "in.jsonl"


def asked(manifest, out, attributes=CHEAP, **changes):
    return Request(manifest=str(manifest), out=str(out), attributes=attributes, judges=judge_places({}), **changes)


def here(function, units, tick):
    """An engine without processes: to start one costs seconds."""
    for unit in units():
        for _ in range(function(unit)):
            tick()


def run(wanted, engine=here):
    return annotate(wanted, engine, progress=False)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


CUT_AT = {
    "pitch": {"en/female": (170, 210), "en/male": (110, 142), "zh/female": (190, 217), "zh/male": (116.5, 145)},
    "energy": {"en": (-33, -26.5), "zh": (-33, -26.5)},
    "speed": {"en": (4.13, 5.4), "zh": (3.5, 5.1)},
}
"""Where the classes of the bundled clips were cut, in the values of the judges."""


def test_clips_of_known_settings_get_their_classes(tmp_path, known):
    write_manifest(tmp_path / "in.jsonl", bare(known))
    judges = find_judges(tuple(CUT_AT), OFFLINE)
    attributes = {
        name: AttributeBins(
            judge=judges[name].name,
            unit=judges[name].unit,
            groups={
                place: Bounds(lower=float(low), upper=float(high), count=0) for place, (low, high) in groups.items()
            },
        )
        for name, groups in CUT_AT.items()
    }
    save_bins(tmp_path / "bins.json", Bins(corpus="bundled clips", attributes=attributes))
    wanted = asked(
        tmp_path / "in.jsonl",
        tmp_path / "out" / "m.jsonl",
        tuple(OFFLINE),
        instructions=2,
        bins=str(tmp_path / "bins.json"),
    )
    done = run(wanted, open_engine("local", 2))  # all judges: quicker where types are not checked at run time
    rows = read_manifest(tmp_path / "out" / "m.jsonl")
    assert [row.id for row in rows] == [row.id for row in known]
    order = {"low": 0, "slow": 0, "normal": 1, "high": 2, "fast": 2}
    for name in CUT_AT:
        pairs = [(row.attributes[name], truth.attributes[name]) for row, truth in zip(rows, known, strict=True)]
        assert sum(one == other for one, other in pairs) >= 53, name
        assert all(abs(order[one] - order[other]) < 2 for one, other in pairs), name
    assert (
        sum(row.attributes["gender"] == truth.attributes["gender"] for row, truth in zip(rows, known, strict=True)) > 56
    )
    assert done.rows == 60
    assert done.rejected == 0
    bins = load_bins(tmp_path / "out" / "bins.json")
    assert bins == load_bins(tmp_path / "bins.json")
    for row in rows:
        assert set(row.annotations) >= {"gender", "energy"}
        assert all(found.judge and 0 <= found.confidence <= 1 for found in row.annotations.values())
        assert bins.fingerprint in row.annotations["energy"].judge
        assert len(row.instructions) == 2
        assert all(spoken_content(text).text == row.transcript for text in row.instructions)


def test_the_number_of_processes_changes_no_byte(tmp_path, known):
    write_manifest(tmp_path / "in.jsonl", bare(known[:40]))
    for name, engine in (("1", here), ("2", open_engine("local", 2))):
        run(asked(tmp_path / "in.jsonl", tmp_path / name / "m.jsonl", CHEAP, instructions=1), engine)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    assert sorted(contents(tmp_path / "1")) == ["bins.json", "m.jsonl", "rejected.jsonl"]
    assert load_bins(tmp_path / "1" / "bins.json").attributes["energy"].groups["en"].count == 20


KILLED = """
import os, signal, sys
from pathlib import Path
from voxinstruct_jax.data import annotate
from voxinstruct_jax.data.engines import open_engine
from voxinstruct_jax.judges.judge import Measurement
from voxinstruct_jax.judges.prosody import EnergyJudge
from voxinstruct_jax.judges.registry import judge_places

class Judge(EnergyJudge):
    def measure(self, clip):
        if clip.transcript == os.environ.get("DEADLY") and not Path(os.environ["DONE"]).exists():
            Path(os.environ["DONE"]).touch()
            os.kill(os.getppid(), signal.SIGKILL)
        return super().measure(clip)

def here(function, units, tick):
    for unit in units():
        function(unit)

if __name__ == "__main__":
    if sys.argv[3] == "writing":
        placed, seen = annotate._placed, []
        def placed_until_killed(row, folder):
            seen.append(row)
            if len(seen) == 30:
                os.kill(os.getpid(), signal.SIGKILL)
            return placed(row, folder)
        annotate._placed = placed_until_killed
    if sys.argv[3] == "clearing":
        annotate.shutil.rmtree = lambda path, **_: os.kill(os.getpid(), signal.SIGKILL)
    # The process that is to be killed while it measures needs a worker to do it.
    engine = open_engine("local", 1) if sys.argv[3] == "measuring" else here
    wanted = annotate.Request(
        manifest=sys.argv[1], out=sys.argv[2], attributes=("energy",),
        judges=judge_places({"energy": "killed:Judge"}), instructions=1,
    )
    annotate.annotate(wanted, engine, progress=False)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory, known):
    """Starts a run that is killed at a moment; goes on with it in this process; `whole`: of a run that was not."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "killed.py").write_text(KILLED)
    write_manifest(folder / "in.jsonl", bare(known[:50]))

    def start(out, moment):
        command = [sys.executable, folder / "killed.py", folder / "in.jsonl", out, moment]
        environment = {"PYTHONPATH": f"{ROOT}:{folder}", "PATH": "", "DONE": f"{out.parent}.killed",
                       "DEADLY": known[40].transcript if moment == "measuring" else ""}  # fmt: skip
        return subprocess.run(command, env=environment, check=False, capture_output=True, text=True)

    def go_on(out):
        wanted = asked(folder / "in.jsonl", out, ("energy",), instructions=1)
        run(dataclasses.replace(wanted, judges=judge_places({"energy": "killed:Judge"})))

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        go_on(folder / "whole" / "m.jsonl")
        yield SimpleNamespace(start=start, go_on=go_on, whole=contents_of_files(folder / "whole"))


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["measuring", "writing", "clearing"])
def test_a_kill_at_any_moment_ends_in_the_same_bytes(tmp_path, killed, moment):
    out = tmp_path / "out" / "m.jsonl"
    done = killed.start(out, moment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    if moment == "measuring":
        assert [path.name for path in out.parent.iterdir()] == ["m.jsonl.work"]
        assert sorted(path.stem for path in (out.parent / "m.jsonl.work").glob("*.jsonl")) == ["measured-0000000"]
    killed.go_on(out)
    left = {name: data for name, data in contents_of_files(out.parent).items() if ".done" not in name}
    assert left == killed.whole


def contents_of_files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_bad_clips_cost_one_line_each(tmp_path, known):
    good = bare(known[:5])
    (tmp_path / "empty.wav").touch()
    (tmp_path / "torn.ogg").write_bytes(pathlib.Path(known[0].audio).read_bytes()[:40])
    (tmp_path / "text.flac").write_text("no sound")
    bad = [dataclasses.replace(good[0], id=name, audio=str(tmp_path / name))
           for name in ("empty.wav", "torn.ogg", "text.flac", "missing.mp3")]  # fmt: skip
    write_manifest(tmp_path / "in.jsonl", [*bad[:2], *good, *bad[2:]])
    with (tmp_path / "in.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "no audio", "language": "en"}\n{"id": \n')
    done = run(asked(tmp_path / "in.jsonl", tmp_path / "out" / "m.jsonl"))
    assert [row.id for row in read_manifest(tmp_path / "out" / "m.jsonl")] == [row.id for row in good]
    rejected = [json.loads(line) for line in (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()]
    assert sorted(line["id"] for line in rejected) == [
        "",
        "empty.wav",
        "missing.mp3",
        "no audio",
        "text.flac",
        "torn.ogg",
    ]
    assert all(line["reason"] for line in rejected)
    assert (done.rows, done.rejected) == (5, 6)


def test_a_manifest_of_bad_clips_alone_ends_with_one_line(tmp_path, known):
    write_manifest(tmp_path / "in.jsonl", [dataclasses.replace(bare(known[:1])[0], audio=str(tmp_path / "no.wav"))])
    with pytest.raises(InputError, match=r"all rows were set aside, see .*rejected\.jsonl"):
        run(asked(tmp_path / "in.jsonl", tmp_path / "out" / "m.jsonl"))
    assert not (tmp_path / "out" / "m.jsonl").exists()
    assert "no such audio" in (tmp_path / "out" / "rejected.jsonl").read_text()
    (tmp_path / "no.wav").write_bytes(pathlib.Path(known[0].audio).read_bytes())  # mended; an Ogg by any name
    assert run(asked(tmp_path / "in.jsonl", tmp_path / "out" / "m.jsonl")).rows == 1


def test_what_a_person_gave_is_kept_and_what_was_annotated_is_replaced(tmp_path, known):
    old = Annotation(value=1.0, unit="x", label="fast", confidence=1.0, judge="an older one")
    rows = bare(known[:6])
    rows[0] = dataclasses.replace(rows[0], attributes={"energy": "whispered", "mood": "odd"}, instructions=("Mine",))
    rows[1] = dataclasses.replace(rows[1], attributes={"speed": "breakneck"}, annotations={"speed": old})
    rows[2] = dataclasses.replace(rows[2], attributes={"energy": "whispered"})
    write_manifest(tmp_path / "in.jsonl", rows)
    done = run(asked(tmp_path / "in.jsonl", tmp_path / "out" / "m.jsonl", instructions=2))
    assert done.without_instructions == 1
    first, second, third, *others = read_manifest(tmp_path / "out" / "m.jsonl")
    assert first.attributes.keys() == {"energy", "mood", "speed"}
    assert first.attributes["energy"] == "whispered"
    assert first.annotations.keys() == {"speed"}
    assert first.instructions == ("Mine",)
    assert second.attributes["speed"] in ("slow", "normal", "fast")
    assert second.annotations["speed"].judge != "an older one"
    assert third.instructions == ()  # the grammar has no words for it
    assert all(len(row.instructions) == 2 for row in (second, *others))


def test_given_boundaries_are_used_and_kept_with_the_result(tmp_path, manifest):
    run(asked(manifest, tmp_path / "train" / "m.jsonl"))
    bins = tmp_path / "train" / "bins.json"
    shifted = json.loads(bins.read_text())
    for bounds in shifted["attributes"]["energy"]["groups"].values():
        bounds |= {"lower": -90.0, "upper": -80.0, "count": 0}
    (tmp_path / "given.json").write_text(json.dumps(shifted))
    done = run(asked(manifest, tmp_path / "dev" / "m.jsonl", bins=str(tmp_path / "given.json")))
    assert done.classes["energy"] == {"high": 8}
    assert load_bins(tmp_path / "dev" / "bins.json") == load_bins(tmp_path / "given.json")


def test_boundaries_of_another_judge_are_refused(tmp_path, manifest):
    run(asked(manifest, tmp_path / "train" / "m.jsonl"))
    changed = (tmp_path / "train" / "bins.json").read_text().replace(EnergyJudge().name, "loudness/2")
    (tmp_path / "given.json").write_text(changed)
    with pytest.raises(InputError, match="energy was measured by loudness/2"):
        run(asked(manifest, tmp_path / "dev" / "m.jsonl", bins=str(tmp_path / "given.json")))


def test_nothing_of_anybody_is_lost(tmp_path, manifest, known):
    with pytest.raises(InputError, match="is the manifest itself"):
        run(asked(manifest, manifest))
    run(asked(manifest, tmp_path / "out" / "m.jsonl"))
    with pytest.raises(InputError, match="boundaries of another manifest; use them by --bins"):
        run(asked(manifest, tmp_path / "out" / "other.jsonl"))
    run(asked(manifest, tmp_path / "out" / "other.jsonl", bins=str(tmp_path / "out" / "bins.json")))
    work = tmp_path / "new.jsonl.work"
    work.mkdir()
    (work / "run.json").write_text('{"rows": "others"}')
    with pytest.raises(InputError, match=r"holds an unfinished run with other .*rows.*remove it"):
        run(asked(manifest, tmp_path / "new.jsonl"))


@pytest.mark.parametrize("name", ["m.parquet", "m.jsonl.gz"])
def test_other_forms_of_manifest(tmp_path, manifest, name):
    run(asked(manifest, tmp_path / "a" / "m.jsonl"))
    run(asked(manifest, tmp_path / "b" / name))
    assert read_manifest(tmp_path / "b" / name) == read_manifest(tmp_path / "a" / "m.jsonl")


def test_audio_is_found_from_wherever_the_result_lies(tmp_path, known, monkeypatch):
    (tmp_path / "corpus" / "audio").mkdir(parents=True)
    sound = tmp_path / "corpus" / "audio" / "a b.ogg"
    sound.write_bytes(pathlib.Path(known[0].audio).read_bytes())
    monkeypatch.chdir(tmp_path)
    rows = [dataclasses.replace(bare(known[:1])[0], id=str(k), audio="corpus/audio/a b.ogg") for k in range(3)]
    write_manifest("corpus/in.jsonl", rows)
    run(asked("corpus/in.jsonl", "elsewhere/m.jsonl"))
    assert all(pathlib.Path(row.audio).is_file() for row in read_manifest("elsewhere/m.jsonl"))
    run(asked("corpus/in.jsonl", "corpus/m.jsonl"))
    assert '"audio": "audio/a b.ogg"' in pathlib.Path("corpus/m.jsonl").read_text()


@pytest.mark.parametrize(
    "transcript",
    ['He said: "Go now!" and left at once.', "One\ntwo\nthree four.", "if x > 3: print(x)", "مرحبا بكم جميعا اليوم",
     "word " * 400],
    ids=["quotes", "newlines", "code", "right to left", "2,000 characters"],
)  # fmt: skip
def test_any_transcript_is_measured(known, transcript):
    row = dataclasses.replace(known[0], transcript=transcript)
    finding = measure_row(dataclasses.replace(row, attributes={}), {"speed": SpeedJudge(), "energy": EnergyJudge()})
    assert finding.reason == ""
    assert finding.measured["speed"].value > 0


def test_words_in_quotes_count_as_the_others_do(known):
    plain, marked = (
        spoken_clip(dataclasses.replace(known[0], transcript=text)).syllables
        for text in ("He said go now and left", 'He said "go now" and left')
    )
    assert plain == marked == 6


class Stress:
    attribute, name, unit = "stress", "stress/1", ""

    def measure(self, clip):
        if clip.transcript.startswith("P"):
            return Measurement(label="", confidence=0.7)
        return Measurement(label="0 2", confidence=0.9, word_times_s=((0.1, 0.2), (0.2, 0.5), (0.5, 0.9)))


def test_stressed_words_become_indices_and_their_times_are_kept(tmp_path, known, monkeypatch, request):
    monkeypatch.syspath_prepend(request.path.parent)
    rows = [
        dataclasses.replace(row, transcript=text)
        for row, text in zip(bare(known), ("It is so.", "Plain it is."), strict=False)
    ]
    write_manifest(tmp_path / "in.jsonl", rows)
    wanted = Request(manifest=str(tmp_path / "in.jsonl"), out=str(tmp_path / "m.jsonl"), attributes=("stress",),
                     judges={"stress": "test_annotate:Stress"})  # fmt: skip
    run(wanted)
    marked, plain = read_manifest(tmp_path / "m.jsonl")
    assert marked.attributes == {"stress": [0, 2]}
    assert marked.annotations["stress"].label == "0 2"
    assert marked.word_times_s == ((0.1, 0.2), (0.2, 0.5), (0.5, 0.9))
    assert plain.attributes == {"stress": []}


class Strange:
    attribute, name, unit = "emotion", "strange/1", ""

    def measure(self, clip):
        raise ZeroDivisionError("no loss")


def test_a_judge_that_fails_costs_its_clip_alone(known):
    finding = measure_row(known[0], {"emotion": Strange()})
    assert finding.reason == "emotion: strange/1 failed (ZeroDivisionError: no loss)"


def test_the_command_prints_what_became_of_the_manifest(tmp_path, manifest, capsys, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "moods.py").write_text(
        "from voxinstruct_jax.judges.judge import Measurement\n"
        "class Mood:\n"
        "    attribute, name, unit = 'emotion', 'mood/1', ''\n"
        "    def measure(self, clip):\n"
        "        return Measurement(label='calm', confidence=0.5)\n"
    )
    monkeypatch.syspath_prepend(tmp_path / "mine")
    out = tmp_path / "out" / "m.jsonl"
    arguments = ["annotate", str(manifest), "--out", str(out), "--workers", "1", "--attributes", "energy,emotion"]
    assert main([*arguments, "--judge", "emotion=moods:Mood", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["rows"] == 8
    assert printed["classes"]["emotion"] == {"calm": 8}
    row = read_manifest(out)[0]
    assert row.annotations["emotion"] == Annotation(value=None, unit="", label="calm", confidence=0.5, judge="mood/1")
    assert main([*arguments, "--workers", "1"]) == 2
    assert "emotion: no judge comes with this package" in capsys.readouterr().err
    assert main(["annotate", str(manifest), "--out", str(out), "--judge", "emotion"]) == 2
    assert main(["annotate", "nowhere.jsonl", "--out", str(out), "--attributes", "energy"]) == 1
