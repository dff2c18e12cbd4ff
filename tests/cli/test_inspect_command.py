import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import soundfile

from voxinstruct_jax.cli.main import main

AR_PAPER = """
from voxinstruct_jax.models.ar import ARConfig
from voxinstruct_jax.training.ar import ARExperiment
experiment = ARExperiment(model=ARConfig.paper())
"""


@pytest.fixture
def inspect(capsys):
    """Runs the command; gives what it prints as JSON."""

    def call(path, expected_code=0):
        assert main(["inspect", str(path), "--json"]) == expected_code
        return json.loads(capsys.readouterr().out)

    return call


def write_rows(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_configuration_gives_exact_parameters_without_making_them(inspect, tmp_path):
    path = tmp_path / "ar_paper.py"
    path.write_text(AR_PAPER)
    parameters = inspect(path)["parameters"]
    assert parameters["trainable"] == parameters["without_frozen"] == 205_865_984
    # mT5-base encoder: 250112 x 768 embeddings and 12 blocks of 4 x 768² attention and 3 x 768 x 2048 feed-forward,
    # two norms each, one final norm, 32 x 12 relative biases
    assert parameters["frozen"] == 250112 * 768 + 12 * (4 * 768**2 + 3 * 768 * 2048 + 2 * 768) + 768 + 32 * 12
    assert parameters["total"] == parameters["trainable"] + parameters["frozen"] == sum(parameters["by_part"].values())


def test_a_voice_lists_its_parts(inspect, tiny_voice_folder):
    found = inspect(tiny_voice_folder)
    assert found["kind"] == "voice"
    assert found["checksums_ok"] is True
    by_part = found["parameters"]["by_part"]
    assert set(by_part) == {"codec", "units", "ar", "nar"}
    assert by_part["units"] == 12 * 384
    assert found["parameters"]["total"] == sum(by_part.values())


def test_damaged_weights_are_told_and_fail(inspect, tiny_voice_folder, tmp_path):
    folder = shutil.copytree(tiny_voice_folder / "units", tmp_path / "units")
    assert inspect(folder)["checksums_ok"] is True
    (folder / "MODEL_CARD.md").write_text("changed")
    found = inspect(folder, expected_code=1)
    assert found["checksums_ok"] is False
    assert "MODEL_CARD.md" in found["damage"]


def test_a_manifest_gives_rows_hours_languages_and_speakers(inspect, tmp_path):
    soundfile.write(tmp_path / "a.wav", [0.0] * 16_000, 16_000)
    row = {"audio": "a.wav", "transcript": "hi", "speaker": "s"}
    path = write_rows(
        tmp_path / "manifest.jsonl",
        {**row, "id": "a", "language": "en"},
        {**row, "id": "b", "language": "zh", "duration_s": 35.0, "instruction": "Say hi"},
        {**row, "id": "c"},
    )
    found = inspect(path)
    assert found["kind"] == "manifest"
    assert (found["rows"], found["rejected"], found["speakers"]) == (2, 1, 1)
    assert found["languages"] == {"en": 1, "zh": 1}
    assert found["hours"] == pytest.approx(36 / 3600)
    assert found["first_rejections"][0].startswith("row 3: ")


def test_a_request_file_is_told_from_a_manifest(inspect, tmp_path):
    path = write_rows(tmp_path / "r.jsonl", {"id": "a", "instruction": "Say hi"}, {"id": "b", "instruction": ""})
    found = inspect(path)
    assert (found["kind"], found["requests"], found["rejected"]) == ("requests", 1, 1)


def test_results_are_counted_finished_or_not(inspect, tmp_path):
    from voxinstruct_jax.jobs.results import Result, part_bytes

    done = Result(id="a", status="done", instruction="x", duration_s=36.0, finish_reason="stop", seed=1)
    failed = Result(id="b", status="failed", instruction="x", finish_reason="error", error="no", seed=1)
    (tmp_path / "results").mkdir()
    (tmp_path / "job.json").write_text('{"voice": "v"}')
    assert inspect(tmp_path)["results"] == 0
    (tmp_path / "results" / "unit-00000.parquet").write_bytes(part_bytes([done]))
    found = inspect(tmp_path)
    assert (found["kind"], found["complete"], found["results"]) == ("results", False, 1)
    (tmp_path / "results.parquet").write_bytes(part_bytes([done, failed]))
    for path in (tmp_path, tmp_path / "results.parquet"):
        found = inspect(path)
        assert found["status"] == {"done": 1, "failed": 1}
        assert found["finish_reasons"] == {"stop": 1, "error": 1}
        assert found["hours"] == pytest.approx(0.01)


def test_a_training_run_tells_its_last_whole_metrics_and_states(inspect, tmp_path):
    import numpy as np

    from voxinstruct_jax.checkpoints.run import RunStore

    store = RunStore(tmp_path / "states")
    for step in (10, 20):
        store.save(step, {"a": np.zeros(3, np.float32)})
    store.close()
    (tmp_path / "run.json").write_text('{"kind": "ar", "data": "f"}')
    (tmp_path / "config.json").write_text('{"train": {"steps": 100}}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "loss": 2.0}\n{"step": 20, "loss": 1.5}\n{"step": 3')
    (tmp_path / "states" / "checksums-20.json").write_text("{}")
    found = inspect(tmp_path)
    assert (found["kind"], found["run_kind"], found["step"], found["steps"]) == ("training run", "ar", 20, 100)
    assert found["metrics"]["loss"] == 1.5
    assert found["whole_states"] == [10]


def test_shards_are_verified(inspect, tmp_path):
    import numpy as np

    from voxinstruct_jax.data.shards import Example, Lengths, ShardIndex, write_index, write_shard

    example = Example(
        id="a",
        language="en",
        transcript="hi",
        instructions=('"hi"',),
        semantic_tokens=np.array([1, 2], np.int16),
        run_lengths=np.array([1, 3], np.int16),
        codes=np.zeros((2, 4), np.int16),
    )
    entry = write_shard(tmp_path / "shard-00000.array_record", [example])
    lengths = Lengths(
        frames=np.array([4], np.int32),
        semantic=np.array([2], np.int32),
        speakers=np.zeros(1, np.int32),
        text=np.array([5], np.int32),
        text_offsets=np.array([0, 1], np.int64),
    )
    index = ShardIndex(
        fingerprints={"codec": "abc"}, frame_rate=25.0, num_examples=1, hours=0.5, num_codebooks=2, largest_code=0,
        largest_semantic_token=2, languages={"en": 1}, shards=(entry,),
    )  # fmt: skip
    write_index(tmp_path, index, lengths)
    found = inspect(tmp_path)
    assert (found["kind"], found["records"], found["hours"]) == ("shards", 1, 0.5)
    assert found["fingerprints"] == {"codec": "abc"}
    assert found["checksums_ok"] is True
    content = bytearray((tmp_path / entry.name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / entry.name).write_bytes(content)
    assert inspect(tmp_path, expected_code=1)["checksums_ok"] is False


@pytest.mark.parametrize("content", [None, "hello\n", '{"x": 1}\n'])
def test_an_unknown_path_or_kind_is_wrong_use_in_one_line(tmp_path, capsys, content):
    path = tmp_path / "thing.jsonl"
    if content is not None:
        path.write_text(content)
    assert main(["inspect", str(path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "no such file" in line or "not a kind this command knows" in line


def test_an_empty_folder_is_no_known_kind(tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 2
    assert "not a kind" in capsys.readouterr().err


def test_people_get_lines_with_separated_thousands(tiny_voice_folder, capsys):
    assert main(["inspect", str(tiny_voice_folder / "units")]) == 0
    assert "total: 4,608" in capsys.readouterr().out


def test_no_path_is_wrong_use(capsys):
    assert main(["inspect"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "path" in line


CORPUS = Path(__file__).parents[2] / "corpus" / "dev"


class Page(HTMLParser):
    """Elements of a page by name, and the text of its marks."""

    def __init__(self, path):
        super().__init__()
        self.elements, self.marks, self._in_mark = [], [], False
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._in_mark = tag == "mark"

    def handle_endtag(self, tag):
        self._in_mark = False

    def handle_data(self, data):
        if self._in_mark:
            self.marks.append(data)

    def all(self, name):
        return [attrs for tag, attrs in self.elements if tag == name]


def test_histograms_and_token_use_of_shards(inspect):
    found = inspect(CORPUS)
    assert found["counted_records"] == found["records"] == 168
    for histogram in found["histograms"].values():
        assert {language: sum(counts) for language, counts in histogram["counts"].items()} == {"en": 79, "zh": 89}
        assert all(len(counts) == len(histogram["edges"]) - 1 for counts in histogram["counts"].values())
    assert len(found["codebooks"]) == 6
    for used in (found["semantic_tokens"], *found["codebooks"]):
        assert 1 < used["perplexity"] <= used["used"]
        counts = [count for _, count in used["commonest"]]
        assert counts == sorted(counts, reverse=True)


def batch_config(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from voxinstruct_jax.models.ar import ARConfig\n"
        "from voxinstruct_jax.data.batches import BatchConfig\n"
        "from voxinstruct_jax.text.tokenizer import PronunciationTokenizer\n"
        "from voxinstruct_jax.training.ar import ARExperiment\n"
        "from voxinstruct_jax.training.language_model import TokenData\n"
        "from voxinstruct_jax.vocabulary import Vocabulary\n"
        "experiment = ARExperiment(\n"
        "    model=ARConfig.tiny(vocabulary=Vocabulary(num_semantic=256, num_codebooks=4),\n"
        "                        channel_sizes=PronunciationTokenizer().channel_sizes),\n"
        f"    data=TokenData(shards={str(CORPUS)!r}, batch=BatchConfig(text_width=320, time_width=512, rows=4)),\n"
        ")\n"
    )
    return path


def test_a_batch_of_a_configuration(tmp_path, capsys):
    config = str(batch_config(tmp_path))
    assert (
        main(["inspect", config, "--batch", "5", "--json", "--data.mixture.language-weights", "en", "1", "zh", "1"])
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["step"], found["rows"]) == ("batch", 5, 4)
    assert found["clips"] == sum(found["languages"].values()) >= 4
    assert 0 < found["tokens"] <= 4 * 512
    assert found["waste"] == pytest.approx(1 - found["tokens"] / (4 * 512), abs=1e-4)
    assert found["shares"]["dev/zh"] == pytest.approx(0.5, abs=0.1)


def test_the_page_of_a_batch_plays_its_clips_and_marks_the_words(tmp_path, capsys):
    folder = tmp_path / "page"
    command = [
        "inspect",
        str(batch_config(tmp_path)),
        "--batch",
        "0",
        "--html",
        str(folder),
        "--examples",
        "2",
        "--json",
    ]
    assert main(command) == 0
    found = json.loads(capsys.readouterr().out)
    page = Page(Path(found["page"]))
    players = page.all("audio")
    assert len(players) == len(page.marks) == 2
    for player in players:
        samples, rate = soundfile.read(folder / player["src"])
        assert rate == 24_000
        assert abs(samples).max() > 0.01
    assert len(page.all("svg")) == 3 + 2  # histograms, clips
    assert not [name for name, attrs in page.elements if name in ("script", "link") or "://" in attrs.get("src", "")]
    if (browser := shutil.which("chromium")) is not None:
        options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'chromium'}"]
        url = Path(found["page"]).as_uri()
        shown = subprocess.run(
            [browser, *options, "--dump-dom", url], capture_output=True, text=True, check=True
        ).stdout
        assert shown.count("<audio") == 2
        assert shown.count("</article>") == 2


def test_foreign_texts_are_escaped_on_the_page_of_a_manifest(tmp_path):
    attack = '<script>alert(1)</script> $x^2$ "quoted" שלום'
    soundfile.write(tmp_path / "a.wav", [0.1, -0.1] * 8000, 16_000)
    row = {"id": "<b>a</b>", "audio": "a.wav", "language": "en", "transcript": attack, "instruction": f"Say “{attack}”"}
    missing = {**row, "id": "c", "audio": "missing.wav"}
    path = write_rows(tmp_path / "manifest.jsonl", {**row, "word_times_s": [[0, 0.1]] * 7}, missing)
    assert main(["inspect", str(path), "--html", str(tmp_path / "page")]) == 0
    page = Page(tmp_path / "page" / "report.html")
    assert not page.all("script")
    assert page.marks == [attack, attack]
    assert len(page.all("audio")) == 1
    assert "missing.wav" in (tmp_path / "page" / "report.html").read_text()


def test_only_data_has_a_page(tiny_voice_folder, tmp_path, capsys):
    assert main(["inspect", str(tiny_voice_folder), "--html", str(tmp_path / "page")]) == 2
    assert "give a manifest, whole shards, or --batch STEP" in capsys.readouterr().err
    assert main(["inspect", str(tiny_voice_folder), "--batch", "1"]) == 2
    assert not (tmp_path / "page").exists()


def test_codes_of_another_codec_are_not_spoken(tiny_voice_folder, tmp_path):
    folder = tmp_path / "page"
    assert (
        main(["inspect", str(CORPUS), "--html", str(folder), "--voice", str(tiny_voice_folder), "--examples", "1"]) == 0
    )
    page = (folder / "report.html").read_text()
    assert "the codes are of another codec; give the voice that made them with --voice" in page
    assert "<audio" not in page


def test_output_that_nobody_reads_on_is_no_crash():
    program = "import sys; from voxinstruct_jax.cli.main import main; sys.exit(main(['testset']))"
    running = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    running.stdout.close()  # as `| head` does once it has its lines; the command has not printed yet
    _, errors = running.communicate()
    assert running.returncode == 1
    assert errors == ""
