"""`voxinstruct demo` from end to end, with a voice that knows nothing."""

import json
import shutil

from voxinstruct_jax.cli.main import main


def test_demo_speaks_every_case_and_writes_a_page(tmp_path, tiny_voice_folder, capsys):
    voice = shutil.copytree(tiny_voice_folder, tmp_path / "voice")
    settings = json.loads((voice / "voice.json").read_text())
    # it never ends by itself: what it may say at most is what it says
    (voice / "voice.json").write_text(json.dumps(settings | {"max_s_per_syllable": 0.1, "margin_s": 0.2}))
    assert main(["demo", "--voice", str(voice), "--out", str(tmp_path / "demo"), "--no-judge"]) == 0
    page = (tmp_path / "demo" / "report.html").read_text("utf-8")
    names = ["a", "b", "c", "d", "mandarin", "mixed", *(f"guidance-{number}" for number in range(6))]
    for name in names:
        assert (tmp_path / "demo" / "audio" / f"{name}.wav").stat().st_size > 1000
        assert f"{name}.wav" in page
    assert "12 utterances" in capsys.readouterr().out


def test_demo_names_a_folder_that_is_no_voice(tmp_path, capsys):
    assert main(["demo", "--voice", str(tmp_path), "--out", str(tmp_path / "demo")]) == 1
    assert "voice.json" in capsys.readouterr().err
