"""The commands of docs/evaluate.md, as they stand there, on a real sound and all judges but Whisper."""

import json
import re
import shlex
import shutil
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import soundfile

from voxinstruct_jax.cli.main import main
from voxinstruct_jax.evaluation import stages
from voxinstruct_jax.judges.bins import AttributeBins, Bins, Bounds, save_bins

ROOT = Path(__file__).parents[2]
PROMPTS = ROOT / "tests" / "corpus" / "asterisk"
WHOLE_VOICES = ("compare_ablation_small", "--ablation")
"""Commands that have a voice speak first: tests/cli/test_evaluate_command.py, with a tiny one."""

pytestmark = pytest.mark.skipif(
    any(util.find_spec(name) is None for name in ("whisper_normalizer", "speechmos", "pystoi")),
    reason="the asr and evaluation extras are not installed",
)


class Perfect:
    """Stands in for Whisper."""

    def __init__(self, folder, words):
        self.fingerprint, self.words = f"perfect/{folder}", words

    def transcribe(self, samples, sample_rate, language=None):
        return self.words

    def detect_language(self, samples, sample_rate):
        return "en", 1.0


def commands() -> list[list[str]]:
    text = (ROOT / "docs" / "evaluate.md").read_text("utf-8")
    lines = "".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)).splitlines()
    words = [shlex.split(line) for line in lines]
    ours = [line[line.index("voxinstruct") + 1 :] for line in words]
    return [line for line in ours if not any(name in " ".join(line) for name in WHOLE_VOICES)]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with everything that the guide names: two systems of one short sentence each, a table, judges."""
    folder = tmp_path_factory.mktemp("guide")
    rows = [json.loads(line) for line in (PROMPTS / "manifest.jsonl").read_text("utf-8").splitlines()]
    row = min((row for row in rows if row["duration_s"] > 1.5), key=lambda row: row["duration_s"])
    samples, rate = soundfile.read(PROMPTS / row["audio"], dtype="float32")
    asked = {"id": "a", "transcript": row["transcript"], "language": "en", "seed": 1, "instruction": "Say it.",
             "attributes": {"pitch": "low", "gender": "female"}}  # fmt: skip
    for name, gain in {"results": 1.0, "results_a": 1.0, "results_b": 0.5, "other": 0.5, "real_speech": 0.9}.items():
        (folder / name).mkdir()
        soundfile.write(folder / name / "a.wav", gain * samples, rate)
        entry = {**asked, "audio": "a.wav"}
        (folder / name / "manifest.jsonl").write_text(json.dumps(entry) + "\n", "utf-8")
    shutil.copytree(folder / "results", folder / "tests" / "corpus" / "asterisk")
    (folder / "dev.jsonl").write_text(json.dumps({**asked, "audio": "real_speech/a.wav"}) + "\n", "utf-8")
    (folder / "shards").mkdir()
    bounds = {"en/female": Bounds(lower=150.0, upper=220.0, count=100)}
    pitch = AttributeBins(judge="any", unit="Hz", groups=bounds)
    save_bins(folder / "shards" / "bins.json", Bins(corpus="guide", attributes={"pitch": pitch}))
    (folder / "my_judges.py").write_text("from stub_judges import Loudness as Utmos\n", "utf-8")
    return folder


@pytest.mark.slow
def test_the_commands_of_the_guide_do_what_it_says(place, monkeypatch, capsys):
    from voxinstruct_jax.cli import evaluate
    from voxinstruct_jax.data import engines
    from voxinstruct_jax.evaluation.evidence import in_this_process

    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setattr(engines, "open_engine", lambda name, workers: in_this_process)
    monkeypatch.setattr(evaluate, "_word_times", lambda: None)  # an aligner for pictures; tests/data has its own
    said = json.loads((place / "dev.jsonl").read_text("utf-8"))["transcript"]
    monkeypatch.setattr(stages, "load_asr", lambda folder, num_threads: Perfect(folder, said))
    stages.open_stage.cache_clear()
    run = commands()
    assert len(run) == 10
    for words in run:
        answers = [word for word in words if word.startswith("answers_")]
        for name in answers:
            _answer(place / "test", place / name)
        assert main(words) == 0, words
    stages.open_stage.cache_clear()
    captured = capsys.readouterr()
    scores = {row["metric"]: row for row in json.loads((place / "scores" / "summary.json").read_text())["rows"]}
    assert (scores["wer.vox"]["value"], scores["wer.vox"]["judge"][:20]) == (0, "perfect/whisper-large"[:20])
    assert scores["mos.utmos"]["evaluated"] == 1
    compared = {row["metric"]: row for row in json.loads((place / "compared" / "compare.json").read_text())["rows"]}
    assert compared["energy.active"]["difference"] == pytest.approx(-6.02, abs=0.05)
    assert len((place / "stress.jsonl").read_text("utf-8").splitlines()) == 200
    assert len((place / "cloning.jsonl").read_text("utf-8").splitlines()) == 200
    assert "all listeners: 2" in captured.out


def _answer(test: Path, path: Path) -> None:
    """What a listener who hears nothing but good would save."""
    found = json.loads(re.sub(r"^window.TEST = |;\n$", "", (test / "config.js").read_text("utf-8")))
    rater = int(re.findall(r"\d+", path.name)[0])
    pages = [(page, found["pages"][page]["samples"]) for page in np.unique(found["orders"][rater - 1]).tolist()]
    answers = [{"page": page, "samples": names, "scores": [[name, 4] for name in names]} for page, names in pages]
    path.write_text(json.dumps({"test": found["test"], "rater": rater, "answers": answers}), "utf-8")
