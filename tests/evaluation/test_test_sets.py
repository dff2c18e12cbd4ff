"""The sets that come with the package, and published ones from true-to-form samples."""

import json
import re
from collections import Counter

import pytest

from voxinstruct_jax.cli.main import main
from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.manifest import Row
from voxinstruct_jax.evaluation.leaks import find_leaks
from voxinstruct_jax.evaluation.test_sets import SETS, read_instruct_tts_eval, read_seed_tts_eval, read_set
from voxinstruct_jax.jobs.requests import read_requests
from voxinstruct_jax.text.content import spoken_content
from voxinstruct_jax.text.words import split_words

OWN = [name for name, each in SETS.items() if each.needs != "source"]
FREE = {"en": "free_wording_en", "zh": "free_wording_zh"}
"""Users quote as they like, so that not each of these is found; the sets stay as they are."""


@pytest.mark.parametrize("name", OWN)
def test_the_rows_of_a_set_are_requests_that_hold_their_words(name):
    rows = read_set(name)
    assert len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        assert row["transcript"] in row["instruction"]
        if (row.get("attributes") or {"quoted": True})["quoted"] and name not in FREE.values():
            assert spoken_content(row["instruction"]).text == row["transcript"]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_instructions_ask_for_every_value_often_enough_and_pairs_differ_in_one(language):
    rows = read_set(f"instruct_{language}")
    assert len(rows) == 600
    for name in ("gender", "age", "pitch", "energy", "speed", "emotion"):
        counts = Counter(row["attributes"][name] for row in rows if name in row["attributes"])
        assert min(counts.values()) >= 60, (name, counts)
    positions = Counter(row["attributes"]["position"] for row in rows)
    assert min(positions.values()) > 180
    assert sum(not row["attributes"]["quoted"] for row in rows) >= 40
    pairs: dict[str, list[dict]] = {}
    for row in rows:
        pairs.setdefault(row["attributes"].get("pair", ""), []).append(row)
    pairs.pop("")
    assert len(pairs) == 50
    for one, other in pairs.values():
        assert one["transcript"] == other["transcript"]
        changed = one["attributes"]["changed"]
        assert one["attributes"] | {changed: other["attributes"][changed]} == other["attributes"]
        assert one["instruction"] != other["instruction"]


def test_stress_pairs_share_the_sentence_and_stress_another_word():
    rows = read_set("stress")
    assert len(rows) == 200
    for one, other in zip(rows[::2], rows[1::2], strict=True):
        assert one["attributes"]["pair"] == other["attributes"]["pair"]
        assert one["transcript"] == other["transcript"]
        assert not set(one["attributes"]["stress"]) & set(other["attributes"]["stress"])
        words = split_words(one["transcript"])
        assert len(words) <= 14
        assert max(one["attributes"]["stress"] + other["attributes"]["stress"]) < len(words)


@pytest.mark.parametrize("language", FREE)
def test_free_wording_asks_for_every_value_as_often_as_the_guide_says(language):
    asked = [row["attributes"] for row in read_set(FREE[language])]
    assert len(asked) == 120
    for name, counts in {
        "gender": {"female": 40, "male": 40},
        "speed": {"slow": 25, "normal": 8, "fast": 27},
        "energy": {"low": 27, "normal": 6, "high": 27},
        "pitch": {"low": 22, "normal": 6, "high": 22},
    }.items():
        assert Counter(each[name] for each in asked if name in each) == counts
    told = {"position", "form", "quoted", "kind"}
    assert sum(set(each) == told for each in asked) == 12
    assert set().union(*asked) == told | {"gender", "speed", "energy", "pitch", "stress"}
    positions, forms = (Counter(each[name] for each in asked) for name in ("position", "form"))
    assert (set(positions), min(positions.values()) >= 30) == ({"first", "middle", "last"}, True)
    assert (set(forms), min(forms.values()) >= 20) == ({"led", "request", "scenario", "labels"}, True)
    assert {each["kind"] for each in asked} == {"free"}
    assert sum(each["quoted"] for each in asked) == {"en": 70, "zh": 71}[language]


@pytest.mark.parametrize("language", FREE)
def test_free_wording_speaks_words_of_its_own_that_stand_once_in_the_instruction(language):
    rows = read_set(FREE[language])
    elsewhere = {row["transcript"] for name in OWN if name != FREE[language] for row in read_set(name)}
    assert len({row["transcript"] for row in rows} - elsewhere) == 120
    assert len({row["instruction"] for row in rows}) == 120
    other_script = {"en": r"[\u4e00-\u9fff]", "zh": r"[A-Za-z]{2}"}[language]
    assert sum(bool(re.search(other_script, row["transcript"])) for row in rows) == 10
    stressed = 0
    for row in rows:
        words = split_words(row["transcript"])
        first = next(word.text for word in words if not word.text.isdecimal())
        assert row["instruction"].count(row["transcript"]) == 1
        assert row["language"] == ("en" if first.isascii() else "zh")
        assert 1 <= len(words) <= 30
        if "stress" in row["attributes"]:
            stressed += 1
            assert 0 <= min(row["attributes"]["stress"]) <= max(row["attributes"]["stress"]) < len(words)
    assert stressed == 12


def test_a_set_is_written_as_a_request_file(tmp_path, capsys):
    assert main(["testset"]) == 0
    assert capsys.readouterr().out.count("\n") == len(SETS)
    out = tmp_path / "sets" / "hard.jsonl"
    assert main(["testset", "hard", "--out", str(out)]) == 0
    requests, rejected = read_requests(out)
    assert (len(requests), rejected) == (100, [])
    assert requests[0].attributes["kind"] == "numbers"
    assert main(["testset", "free_wording_zh", "--out", str(out)]) == 0
    requests, rejected = read_requests(out)
    assert (len(requests), rejected) == (120, [])
    assert main(["testset", "cloning_en", "--out", str(out)]) == 2
    assert "give --prompts" in capsys.readouterr().err


def test_cloning_takes_the_speakers_of_the_prompts_in_turn(tmp_path):
    for name in ("a1", "a2", "b1"):
        (tmp_path / f"{name}.wav").touch()
    lines = [
        {"id": name, "audio": f"{name}.wav", "language": "zh", "transcript": "你好。", "speaker": name[0]}
        for name in ("a1", "a2", "b1")
    ]
    manifest = tmp_path / "prompts.jsonl"
    manifest.write_text("\n".join(json.dumps(line) for line in lines))
    out = tmp_path / "cloning.jsonl"
    assert main(["testset", "cloning_en", "--prompts", str(manifest), "--out", str(out)]) == 0
    requests, rejected = read_requests(out)
    assert (len(requests), rejected) == (200, [])
    spoken = [(request.attributes["speaker"], request.prompt) for request in requests[:4]]
    names = [("a", "a1"), ("b", "b1"), ("a", "a2"), ("b", "b1")]
    assert spoken == [(speaker, str(tmp_path / f"{clip}.wav")) for speaker, clip in names]
    assert requests[0].prompt_transcript == "你好。"


def test_seed_tts_eval_lists_of_every_form_are_read(tmp_path):
    folder = tmp_path / "zh"
    folder.mkdir()
    (folder / "meta.lst").write_text(
        "1-2|提示文本。|prompt-wavs/1.wav|要说的话。\n"
        "1-3|提示文本。|prompt-wavs/1.wav|要说的话。|wavs/1-3.wav\n\n"
        "1-4.wav|要说的话。|prompt-wavs/1.wav\n"
        "1-5|要说的话。\n"
    )
    rows = list(read_seed_tts_eval(folder / "meta.lst"))
    assert [row["id"] for row in rows] == ["1-2", "1-3", "1-4", "1-5"]
    prompt = str(folder / "prompt-wavs/1.wav")
    assert [row.get("prompt") for row in rows] == [prompt, prompt, prompt, None]
    assert [row.get("prompt_transcript") for row in rows] == ["提示文本。", "提示文本。", None, None]
    assert {(row["instruction"], row["language"]) for row in rows} == {("“要说的话。”", "zh")}
    assert rows[1]["attributes"] == {"reference_audio": str(folder / "wavs/1-3.wav")}
    (folder / "meta.lst").write_text("a|b|c|d|e|f\n")
    with pytest.raises(InputError, match=r"meta.lst, line 1: 6 fields; expected utterance"):
        list(read_seed_tts_eval(folder / "meta.lst"))
    (tmp_path / "meta.lst").write_text("a|b\n")
    with pytest.raises(InputError, match="give --language"):
        list(read_seed_tts_eval(tmp_path / "meta.lst"))


def test_instruct_tts_eval_gives_a_request_a_style(tmp_path):
    source = tmp_path / "en.jsonl"
    records = [
        {
            "id": "en_1",
            "text": "Well done.",
            "APS": "gender: Male. Pitch: low.",
            "DSD": "A tired man.",
            "RP": "A coach.",
        },
        {"id": "zh_1", "text": "做得好。", "RP": {"instruction": "教练。", "gen_path": "x.wav"}},
    ]
    source.write_text("\n".join(json.dumps(record) for record in records))
    rows = list(read_instruct_tts_eval(source))
    assert [row["id"] for row in rows] == ["en_1_APS", "en_1_DSD", "en_1_RP", "zh_1_RP"]
    assert rows[1]["instruction"] == 'A tired man. "Well done."'
    assert (rows[3]["instruction"], rows[3]["language"]) == ("教练。 “做得好。”", "zh")
    source.write_text('{"id": 1}')
    with pytest.raises(InputError, match=r"en.jsonl, line 1: expected an object with id, text"):
        list(read_instruct_tts_eval(source))


def test_what_training_has_seen_is_found():
    def row(name, text, speaker=""):
        return Row(id=name, audio="x.wav", language="en", transcript=text, speaker=speaker)

    sentence = "The quick brown fox jumps over the lazy dog near the river bank today."
    training = [
        row("t1", "the QUICK brown fox jumps, over the lazy dog near the river bank today"),
        row("t2", sentence.replace("today", "todays")),
        row("t3", "Something else altogether was said in this one.", speaker="ann"),
    ]
    items = [
        {"id": "same", "transcript": sentence},
        {"id": "new", "transcript": "Nobody has ever put these words in a row."},
        {"id": "voice", "transcript": "Nor these here, I think.", "attributes": {"speaker": "ann"}},
        {"id": "empty", "transcript": ""},
    ]
    found = [(leak.id, leak.kind, leak.train_id) for leak in find_leaks(items, training)]
    assert found == [("same", "near_sentence", "t2"), ("same", "sentence", "t1"), ("voice", "speaker", "t3")]
