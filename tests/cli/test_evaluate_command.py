import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from voxinstruct_jax.cli.main import main

STUBS = Path(__file__).parents[1] / "evaluation"
RATE = 16_000


@pytest.fixture
def command(capfd, monkeypatch):
    """Runs a command without worker processes; gives exit code, standard output and error output."""
    from voxinstruct_jax.data import engines
    from voxinstruct_jax.evaluation.evidence import in_this_process

    monkeypatch.setattr(engines, "open_engine", lambda name, workers: in_this_process)
    monkeypatch.syspath_prepend(str(STUBS))

    def call(*arguments):
        code = main(list(map(str, arguments)))
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Two systems on three sentences; the second is wrong in one word of nine."""
    texts = ["red birds sing", "four cold winters", "we sailed home"]
    heard = {}
    for system, place_s in (("a", 1.0), ("b", 2.0)):
        folder = tmp_path / system
        folder.mkdir()
        rows = []
        for number, text in enumerate(texts):
            seconds = place_s + 0.1 * number
            soundfile.write(folder / f"{number}.wav", 0.1 * np.ones(int(seconds * RATE)), RATE)
            heard[f"{seconds:.2f}"] = text.replace("red", "bed") if system == "b" else text
            rows.append({"id": str(number), "audio": f"{number}.wav", "transcript": text, "language": "en", "seed": 1})
        (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "heard.json").write_text(json.dumps(heard))
    monkeypatch.setenv("VOX_TEST_HEARD", str(tmp_path / "heard.json"))
    return tmp_path


JUDGED = ("--judge", "asr=stub_judges:Parrot", "--metrics", "wer,runaway", "--figures", "0")
"""Without pictures, for which an aligner hears each sound; one test draws some."""


def test_json_has_the_stable_names(command, results):
    drawn = (*JUDGED, "--figures", "1")
    code, output, _ = command("evaluate", results / "b", "--out", results / "scores", "--json", *drawn)
    found = json.loads(output)
    assert code == 0
    assert found["wer"] == pytest.approx(1 / 9, abs=1e-5)
    assert (found["cer"], found["evaluated"], found["total"]) == (None, 3, 3)
    assert found["metrics"]["wer.vox"]["evaluated"] == 3


def test_the_table_says_evaluated_of_total_and_what_was_skipped(command, results):
    (results / "b" / "0.wav").unlink()
    code, output, _ = command("evaluate", results / "b", "--out", results / "scores", *JUDGED)
    assert code == 0
    assert any(line.split()[:2] == ["wer.vox", "0.3333"] and "3/3" in line for line in output.splitlines())
    assert "0/3  skipped: needs Whisper-large-v3" in output
    assert command("evaluate", results / "b", "--out", results / "scores", "--require", *JUDGED)[0] == 1


def test_wrong_use_is_one_line_and_code_2(command, results):
    for arguments, message in (
        (("--metrics", "wre"), "did you mean"),
        (("--judge", "mos.utmos"), "expected NAME=MODULE:CLASS"),
        (("--workers", "0"), "1 or more"),
    ):
        code, _, error = command("evaluate", results / "a", "--out", results / "x", *arguments)
        assert code == 2
        assert message in error
        assert error.count("\n") == 1
    assert command("evaluate", results / "nowhere", "--out", results / "x")[0] == 1


def test_results_are_evaluated_and_compared_in_one_command(command, results):
    out = results / "compared"
    code, output, _ = command("compare", results / "a", results / "b", "--out", out, *JUDGED)
    assert code == 0
    [line] = [line for line in output.splitlines() if line.startswith("wer.vox ")]
    assert line.split()[1:4] == ["0.1111", "0", "+0.111"]
    assert line.rstrip().endswith("0/2/1  differs on 1 of 6 sentences that a claim needs")
    code, output, _ = command(
        "compare", out / "evaluated" / "a", out / "evaluated" / "b", "--out", out, "--json", *JUDGED
    )
    assert code == 0
    assert json.loads(output)["matched"] == 3


def test_a_system_against_itself_has_no_difference(command, results):
    code, output, _ = command("compare", results / "a", results / "a", "--out", results / "same", "--json", *JUDGED)
    assert code == 0
    rows = json.loads(output)["rows"]
    assert {row["difference"] for row in rows} == {0.0}
    assert {(row["baseline"], row["system"]) for row in rows} == {("a (1)", "a (2)")}


def test_other_requests_are_refused(command, results):
    rows = (results / "b" / "manifest.jsonl").read_text().replace("birds", "cats")
    (results / "b" / "manifest.jsonl").write_text(rows)
    arguments = ("compare", results / "a", results / "b", "--out", results / "compared", *JUDGED)
    code, _, error = command(*arguments)
    assert code == 1
    assert "only 67% of the items have a partner" in error
    assert command(*arguments, "--match", "id")[0] == 0
    assert command(*arguments, "--allow-partial")[0] == 0


@pytest.fixture
def experiment(tmp_path, tiny_voice_folder):
    """A file that names two guidances of the tiny voice, two seeds, two sentences."""
    requests = [
        {"id": "one", "instruction": 'Say "no"', "language": "en", "max_duration_s": 0.4},
        {"id": "two", "instruction": 'Say "yes"', "language": "en", "max_duration_s": 0.4},
    ]
    (tmp_path / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in requests))
    (tmp_path / "compare_tiny.py").write_text(
        "from voxinstruct_jax.evaluation.experiment import CompareExperiment, ablation\n"
        f"requests = {str(tmp_path / 'requests.jsonl')!r}\n"
        "experiment = CompareExperiment(systems=ablation()[:2], requests=requests, seeds=(0, 1))\n"
    )
    return tmp_path / "compare_tiny.py"


def test_an_experiment_is_spoken_evaluated_and_compared(command, experiment, tmp_path, tiny_voice_folder):
    out = tmp_path / "out"
    settings = ("--metrics", "length,rtf", "--figures", "0", "--json")
    arguments = ("compare", experiment, "--voice", tiny_voice_folder, "--out", out, *settings)
    code, output, _ = command(*arguments)
    found = json.loads(output)
    assert code == 0
    assert found["matched"] == 4
    assert {row["system"] for row in found["rows"]} == {"instruction-on-ST-2"}
    assert {row["metric"] for row in found["rows"]} >= {"rtf", "length.duration"}
    assert all(row["rtf"] > 0 for row in found["compute"])
    plain, guided = (row["operations_per_s"] for row in found["compute"])
    assert 0 < plain < guided  # a branch more
    spoken = sorted(out.glob("spoken/*/*/*.wav"))
    assert len(spoken) == 8
    before = [path.stat().st_mtime_ns for path in spoken]
    assert command(*arguments)[0] == 0
    assert [path.stat().st_mtime_ns for path in spoken] == before


def test_experiments_and_voices_in_the_wrong_place_are_refused(command, experiment, tmp_path, tiny_voice_folder):
    for arguments, message in (
        ((experiment, experiment), "nothing beside it"),
        ((tiny_voice_folder, "--ablation"), "--requests FILE"),
        ((tiny_voice_folder,), "two or more systems"),
        (("configs/smoke_ar.py",), "holds no comparison"),
    ):
        code, _, error = command("compare", *arguments, "--out", tmp_path / "out")
        assert code == 2
        assert message in error
