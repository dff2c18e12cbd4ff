import json

import numpy as np
import pytest
import soundfile

from voxinstruct_jax.cli.main import main
from voxinstruct_jax.config import InputError
from voxinstruct_jax.utterance import Audio


@pytest.fixture
def synthesize(tiny_voice_folder, capfd):
    """Runs the command with the tiny voice; gives exit code, standard output and the lines of the error output."""

    def call(*arguments):
        code = main(["synthesize", "--voice", str(tiny_voice_folder), *map(str, arguments)])
        captured = capfd.readouterr()
        return code, captured.out, captured.err.splitlines()

    return call


@pytest.fixture
def no_voice(capfd, tmp_path):
    """Runs the command where opening the voice would fail, so that all it says was found out before."""

    def call(*arguments):
        code = main(["synthesize", "--voice", str(tmp_path / "no-voice"), *map(str, arguments)])
        captured = capfd.readouterr()
        return code, captured.err.splitlines()

    return call


def test_one_instruction_becomes_a_tagged_sound_and_the_same_call_gives_the_same_sound(synthesize, tmp_path):
    out = tmp_path / "new" / "hello.wav"
    arguments = ("--instruction", 'Say happily: "hello"', "--out", out, "--seed", 3, "--max-duration-s", 0.6)
    code, output, _ = synthesize(*arguments, "--json")
    assert code == 0
    [result] = json.loads(output)["results"]
    samples, rate = soundfile.read(out)
    assert (result["seed"], result["status"], result["audio"]) == (3, "done", str(out))
    assert result["duration_s"] == pytest.approx(len(samples) / rate)
    assert len(samples) <= 0.6 * rate
    with soundfile.SoundFile(out) as sound:
        assert sound.comment.startswith("synthetic speech")
        assert "seed 3" in sound.comment
    first = out.read_bytes()
    assert synthesize(*arguments)[0] == 0
    assert out.read_bytes() == first


@pytest.mark.parametrize("strengths", [["0"], ["10"], ["0", "1", "10"]])
def test_guidance_from_0_to_10_is_spoken(synthesize, tmp_path, strengths):
    code, output, _ = synthesize(
        "--instruction", 'Say "no"', "--out", tmp_path, "--max-duration-s", 0.4, "--language", "en",
        "--guidance", *strengths,
    )  # fmt: skip
    assert code == 0
    assert "speech.wav" in output
    assert np.isfinite(soundfile.read(tmp_path / "speech.wav")[0]).all()


@pytest.mark.slow
def test_a_stereo_prompt_of_another_rate_is_taken(synthesize, tmp_path):
    prompt = tmp_path / "prompt.wav"
    soundfile.write(prompt, 0.1 * np.random.default_rng(0).standard_normal((30_000, 2)), 44_100)
    code, _, errors = synthesize(
        "--instruction", 'Say "no"', "--out", tmp_path / "a.wav", "--max-duration-s", 0.4, "--prompt", prompt,
    )  # fmt: skip
    assert code == 0, errors
    assert any("acoustic codes only" in line for line in errors)


class Tones:
    """Speaks a tone at once; what is to be spoken quietly is cut, and Klingon is not known."""

    name = "tones"

    def synthesize_many(self, utterances):
        for place, one in enumerate(utterances):
            if one.language == "tlh":
                yield place, InputError("language 'tlh' is not known")
                continue
            yield (
                place,
                Audio(
                    samples=0.3 * np.sin(np.arange(12_000, dtype=np.float32) / 5),
                    sample_rate=24_000,
                    semantic=np.zeros(1, np.int32),
                    acoustic=np.zeros((1, 1), np.int32),
                    language="en",
                    finish_reason="max_acoustic" if "quietly" in one.instruction else "stop",
                    seed=one.seed,
                ),
            )


def test_a_request_file_leaves_sounds_rows_a_page_and_rejections(synthesize, tmp_path, monkeypatch):
    monkeypatch.setattr("voxinstruct_jax.cli.synthesize.open_voice", lambda *_: Tones())
    rows = [
        {"id": "a", "instruction": 'Say "<b>yes</b>"'},
        {"id": "b", "instruction": ""},
        {"id": "c", "instruction": 'Say "no"', "language": "tlh"},
        {"id": "d", "instruction": 'Say quietly "no"'},
        {"instruction": 'Say "no"'},
    ]
    requests = tmp_path / "requests.jsonl"
    requests.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    arguments = ("--requests", requests, "--out", out, "--price-per-hour", 3, "--shards")
    code, output, errors = synthesize(*arguments)
    assert code == 1
    assert f"{out}: 1 spoken, 2 failed, 1 quarantined, 1 rejected; 1.0 s of sound" in output
    assert "2 further tries" in output
    assert "failed c: language 'tlh' is not known" in errors
    assert "quarantined d: cut" in errors
    assert "failed b: row 2: instruction: empty; write some words" in errors
    assert "rejected row 5: id: missing" in errors
    page = (out / "job.html").read_text(encoding="utf-8")
    assert 'src="quarantine/d.wav"' in page
    assert 'src="page/a.wav"' in page  # copied out of its shard
    assert (out / "page" / "a.wav").is_file()
    assert "&lt;b&gt;yes" in page
    assert "Cost of an hour of sound" in page
    code, output, _ = synthesize(*arguments, "--json")
    found = json.loads(output)
    assert code == 1
    assert sorted(result["id"] for result in found["results"]) == ["a", "b", "c", "d"]
    assert found["summary"]["retries"] == 2
    assert [row["row"] for row in found["rejected"]] == [5]


def test_hostile_requests_leave_one_record_each(synthesize, tmp_path):
    """Duplicates, prompts that are missing, short and long, NaN, megabytes, mixed languages: none ends the job."""
    for name, seconds in (("short", 0.1), ("long", 60.0)):
        noise = 0.1 * np.random.default_rng(0).standard_normal(int(16_000 * seconds))
        soundfile.write(tmp_path / f"{name}.wav", noise, 16_000)
    common = {"instruction": 'Say "好 yes"', "max_duration_s": 0.4}
    rows = [
        {"id": "twice", **common},
        {"id": "twice", **common},
        {"id": "gone", **common, "prompt": "none.wav"},
        {"id": "nan", **common, "guidance": [float("nan"), 1, 1]},
        {"id": "huge", **common, "instruction": "x" * 10_000_000},
        {"id": "i" * 1_000_000, **common},
        {"id": "short", **common, "prompt": "short.wav"},
        {"id": "long", **common, "prompt": "long.wav"},
        {"id": "mixed", **common, "language": "zh"},
    ]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, output, errors = synthesize(
        "--requests",
        tmp_path / "r.jsonl",
        "--out",
        tmp_path / "out",
        "--attempts",
        1,
        "--min-similarity",
        0.1,
        "--json",
    )
    assert output, errors
    found = json.loads(output)
    assert code == 1
    assert [row["row"] for row in found["rejected"]] == [2, 6]
    spoken, unspoken = ["long", "mixed", "short", "twice"], ["gone", "huge", "nan"]
    status = {result["id"]: result["status"] for result in found["results"]}
    assert sorted(status) == sorted(spoken + unspoken)
    assert {status[name] for name in spoken} <= {"done", "quarantined"}
    assert {status[name] for name in unspoken} == {"failed"}
    assert sum(path.stat().st_size for path in (tmp_path / "out" / "plan").iterdir()) < 10_000
    assert (tmp_path / "out" / "rejected.jsonl").stat().st_size < 5000
    notes = {result["id"]: " ".join(result["notes"]) for result in found["results"]}
    assert "first 10 s" in notes["long"]
    assert "less than .3 s of speech" in notes["short"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--instruction", ""), 1, "instruction: empty"),
        (("--instruction", "   "), 1, "instruction: empty"),
        (("--instruction", "a" * 5000), 1, "5000 characters, at most 2000"),
        (("--instruction", "🙂🎉"), 1, "holds no words"),
        (("--instruction", "Hi", "--prompt", "none.wav"), 1, "no such audio file: none.wav"),
        (("--instruction", "Hi", "--prompt-transcript", "hi"), 1, "without a prompt"),
        (("--instruction", "Hi", "--seed", "-1"), 1, "seed: expected a whole number"),
        (("--instruction", "Hi", "--guidance", "-1"), 2, "is not a number from 0 up"),
        (("--instruction", "Hi", "--guidance", "1", "2"), 2, "give three strengths"),
        (("--instruction", "Hi", "--guidance", "much"), 2, "invalid float value"),
        (("--instruction", "Hi", "--loud"), 2, "unknown argument --loud"),
        (("--instruction", "Hi", "--requests", "r.jsonl"), 2, "either --instruction TEXT or --requests FILE"),
        ((), 2, "either --instruction TEXT or --requests FILE"),
        (("--requests", "none.jsonl"), 1, "no such request file"),
        (("--requests", "none.jsonl", "--language", "en"), 2, "--language goes with --instruction"),
        (("--instruction", "Hi", "--attempts", "2"), 2, "--attempts goes with --requests"),
        (("--requests", "none.jsonl", "--attempts", "0"), 2, "attempts: 0 is not at least 1"),
        (("--requests", "none.jsonl", "--workers", "0"), 2, "--workers must be at least 1"),
        (("--requests", "none.jsonl", "--max-wer", "-1"), 2, "max_wer: -1.0 is not a rate"),
        (("--requests", "none.jsonl", "--loudness-lufs", "5"), 2, "loudness_lufs: 5.0 is not from -70 to 0"),
        (("--requests", "none.jsonl", "--ray-address", "x"), 2, "--ray-address goes with --engine ray"),
    ],
)
def test_wrong_input_is_one_clear_line_before_the_voice_is_opened(no_voice, tmp_path, arguments, code, message):
    found, [line] = no_voice(*arguments, "--out", tmp_path / "out")
    assert found == code
    assert line.startswith("voxinstruct synthesize: ")
    assert message in line


def test_no_out_is_wrong_use(no_voice):
    code, [line] = no_voice("--instruction", "Hi")
    assert code == 2
    assert "--out" in line


def test_a_kind_of_sound_that_is_not_written_is_wrong_use(no_voice, tmp_path):
    code, [line] = no_voice("--instruction", "Hi", "--out", tmp_path / "a.mp3")
    assert code == 2
    assert ".wav, .flac, .ogg, .opus" in line


@pytest.mark.parametrize("what", ["--instruction", "--requests"])
def test_a_folder_that_cannot_be_written_is_found_before_the_voice_is_opened(no_voice, tmp_path, what):
    requests = tmp_path / "r.jsonl"
    requests.write_text('{"id": "a", "instruction": "Hi"}\n')
    code, [line] = no_voice(what, requests, "--out", requests / "out")
    assert code == 1
    assert "cannot be written" in line


def test_a_missing_voice_is_one_clear_line(no_voice, tmp_path):
    code, lines = no_voice("--instruction", "Hi", "--out", tmp_path / "out")
    assert code == 1
    assert lines[-1].endswith("no voice here (it has no voice.json)")
