import json

import numpy as np
import pytest
import soundfile

from voxinstruct_jax.cli.main import main
from voxinstruct_jax.data.manifest import read_manifest


@pytest.fixture
def recordings(tmp_path):
    """Ten clips of 1 to 5.5 s with a text each, and one without."""
    folder = tmp_path / "my recordings"
    folder.mkdir()
    for number in range(11):
        soundfile.write(folder / f"clip {number}.wav", np.zeros(4000 * (number + 2)), 8000)
        if number < 10:
            (folder / f"clip {number}.txt").write_text(f"This is clip number {number}.")
    return folder


def test_a_folder_becomes_a_manifest_that_moves_with_its_audio(recordings, capsys):
    out = recordings / "manifest.jsonl"
    command = ["import", "folder", str(recordings), "--language", "en", "--out", str(out)]
    assert main([*command, "--json", "--filter.min-duration-s", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["languages"]) == (6, {"en": 6})
    assert found["rejected"] == {"too short": 4, "no text": 1}
    assert found["hours"] == pytest.approx(sum(3 + 0.5 * n for n in range(6)) / 3600)
    assert json.loads(out.read_text().splitlines()[0])["audio"] == "clip 4.wav"
    moved = recordings.rename(recordings.with_name("moved"))
    rows = read_manifest(moved / "manifest.jsonl")
    assert all(
        row.audio.startswith(str(moved)) and soundfile.info(row.audio).duration == row.duration_s for row in rows
    )
    listed = [json.loads(line) for line in (moved / "rejected.jsonl").read_text().splitlines()]
    assert len(listed) == 5
    assert listed[0]["reason"] == "too short: 1.00 s"


def test_the_summary_for_people(recordings, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["import", "folder", "my recordings", "--language", "en", "--out", "new/m.parquet"]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines() == [
        "new/m.parquet: 10 rows (en 10), 0.01 h",
        "left out 1, listed in rejected.jsonl:",
        "          1  no text",
    ]


def test_a_manifest_is_filtered_in_place(recordings, capsys):
    out = str(recordings / "m.jsonl")
    assert main(["import", "folder", str(recordings), "--language", "en", "--out", out]) == 0
    again = ["import", "manifest", out, "--out", out, "--json", "--filter.max-words-per-s", "en", "2"]
    capsys.readouterr()
    assert main(again) == 0
    assert json.loads(capsys.readouterr().out)["rejected"] == {"too fast": 3}
    assert len(read_manifest(out)) == 7


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["folder"], 2, "give FORMAT, SOURCE and --out MANIFEST; see --help"),
        (["folder", "x", "--out", "m.txt", "--language", "en"], 2, "--out m.txt: must end in .jsonl or"),
        (["wav", "x", "--out", "m.jsonl"], 2, "no format 'wav'; known: folder, ljspeech"),
        (["folder", "x", "--out", "m.jsonl"], 2, "give --language en or --language zh"),
        (["folder", "x", "--out", "m.jsonl", "--language", "en"], 1, "x: no such file or folder"),
        (["lhotse", "x", "--out", "m.jsonl", "--filter.max-repeats", "0"], 2, "filter.max_repeats: 0"),
    ],
)
def test_wrong_use_is_one_line(arguments, code, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["import", *arguments]) == code
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("voxinstruct import: ")
    assert message in line


def test_an_unknown_filter_is_wrong_use():
    with pytest.raises(SystemExit, match=r"^2$"):
        main(["import", "folder", "x", "--out", "m.jsonl", "--filter.min-durations", "3"])
