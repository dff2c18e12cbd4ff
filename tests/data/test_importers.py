"""Each layout as its corpus publishes it, in a few lines written here; the audio is noise."""

import gzip
import json
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
import soundfile

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.data.importers import FORMATS, ImportOptions, import_rows
from voxinstruct_jax.data.importers.source import DiskTable
from voxinstruct_jax.data.manifest import Rejection, Row, read_manifest, write_manifest

RATE = 8000
HARD_TEXTS = {
    "quotes": "She said \"stop\" and 'go' and “wait”.",
    "newlines": "First line.\n\nThird line.",
    "code": 'for i in range(3): print(f"{i}|\\t")  # done',
    "right to left": "The word שלום means peace, مرحبا hello.",
    "long": "word " * 399 + "last.",
    "two letters": "Cafe\u0301, unchanged.",
    "a separator of lines": "One\u2028two.",
}


def sound(path, seconds=1.0, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (round(seconds * RATE), channels)
    soundfile.write(path, np.random.default_rng(0).uniform(-0.1, 0.1, shape), RATE)
    return path


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), encoding="utf-8")
    return path


def import_all(name, source, language=None, subset=None):
    """Rows by id, and the kinds of reasons by id."""
    items = list(import_rows(name, str(source), ImportOptions(language=language, subset=subset)))
    rows = {item.id: item for item in items if isinstance(item, Row)}
    return rows, {item.id: item.reason.partition(": ")[0] for item in items if isinstance(item, Rejection)}


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_with_a_text_beside_each_file(tmp_path):
    sound(tmp_path / "Größe eins.wav", 1.5)
    write(tmp_path / "Größe eins.txt", "Hello there.")
    sound(tmp_path / "深い" / ("long " * 40 + ".flac"))
    write(tmp_path / "深い" / ("long " * 40 + ".lab"), "Deep down.")
    sound(tmp_path / "silent.ogg")
    (tmp_path / "empty.wav").touch()
    write(tmp_path / "empty.txt", "Nothing.")
    (tmp_path / "no sound.wav").write_text("This is no sound.")
    write(tmp_path / "no sound.txt", "Not readable.")
    sound(tmp_path / "blank.wav")
    write(tmp_path / "blank.txt", "  ")
    write(tmp_path / "README.txt", "Not a transcript.")
    (tmp_path / "._Größe eins.wav").touch()
    rows, rejected = import_all("folder", tmp_path, "English")
    deep = f"深い/{'long ' * 40}.flac"
    assert {name: row.transcript for name, row in rows.items()} == {
        "Größe eins.wav": "Hello there.",
        deep: "Deep down.",
    }
    assert (rows["Größe eins.wav"].duration_s, rows["Größe eins.wav"].language) == (1.5, "en")
    assert rows[deep].audio == f"{tmp_path}/{deep}"
    assert rejected == {
        "silent.ogg": "no text",
        "empty.wav": "empty audio file",
        "no sound.wav": "unreadable audio",
        "blank.wav": "no text",
    }


@pytest.mark.parametrize("divider", ["\t", "|"])
def test_a_table_of_names_and_texts(tmp_path, divider):
    for name in ("a b.wav", "é.flac", "unnamed.mp3", "wavs/c.WAV"):
        sound(tmp_path / unicodedata.normalize("NFD", name))
    lines = [("a b.wav", 'A "quoted" text | with marks\tin it'), ("é", "Found."), ("c", "Deeper."), ("gone", "Lost.")]
    write(tmp_path / "texts.txt", *(divider.join(line) for line in lines))
    rows, rejected = import_all("folder", tmp_path, "en")
    assert {name: row.transcript for name, row in rows.items()} == dict(lines[:3])
    assert rows["c"].audio == f"{tmp_path}/wavs/c.WAV"
    assert rejected == {"gone": "no audio file", "unnamed.mp3": "no text"}


def test_a_table_with_a_header_and_quoted_cells(tmp_path):
    for name in ("a.wav", "b.wav"):
        sound(tmp_path / name)
    text = 'path,Speaker,sentence,lang\na.wav,tom,"He said ""no"", twice.\n\nThen left.",en\nb.wav,eva,你好。,zh-CN\n'
    (tmp_path / "metadata.csv").write_text(text, encoding="utf-8-sig")
    rows, _ = import_all("folder", tmp_path / "metadata.csv", "en")
    assert rows["a.wav"].transcript == 'He said "no", twice.\n\nThen left.'
    assert [(row.speaker, row.language) for row in rows.values()] == [("tom", "en"), ("eva", "zh")]


def test_lines_that_are_no_utf8_are_set_aside(tmp_path):
    for name in "ab":
        sound(tmp_path / f"{name}.wav")
    (tmp_path / "t.tsv").write_bytes("a\tCafé\n".encode("latin-1") + "b\tCafé\n".encode())
    rows, rejected = import_all("folder", tmp_path, "en")
    assert ({*rows}, rejected) == ({"b"}, {"a": "not UTF-8"})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no texts; give a .txt beside each audio file"),
        ({"one.tsv": b"a\tx", "two.csv": b"a\tx"}, r"several tables \(one.tsv, two.csv\): name one of them"),
        ({"t.txt": b"a text without a divider"}, "t.txt: line 1: neither a tab nor | divides name and text"),
        ({"t.csv": b"name,words\n"}, "t.csv: line 1: neither"),
        ({"t.txt": "a\tx".encode("utf-16")}, "t.txt: is UTF-16; save it as UTF-8"),
        ({"t.txt": b""}, "t.txt: is empty"),
    ],
)
def test_folders_without_usable_texts_are_refused(tmp_path, files, message):
    sound(tmp_path / "a.wav")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        import_all("folder", tmp_path, "en")


def test_ljspeech(tmp_path):
    for name in ("LJ001-0001", "LJ001-0002"):
        sound(tmp_path / "wavs" / f"{name}.wav", 2)
    write(
        tmp_path / "metadata.csv",
        'LJ001-0001|Printed in 1455, "as is".|Printed in fourteen fifty-five, "as is".',
        "LJ001-0002|in being comparatively modern.|in being comparatively modern.",
        "LJ001-0003|gone|gone",
    )
    rows, rejected = import_all("ljspeech", tmp_path, "en")
    assert rows["LJ001-0001"] == Row(
        id="LJ001-0001",
        audio=f"{tmp_path}/wavs/LJ001-0001.wav",
        language="en",
        transcript='Printed in fourteen fifty-five, "as is".',
        duration_s=2.0,
        extra={"written_text": 'Printed in 1455, "as is".'},
    )
    assert rejected == {"LJ001-0003": "no audio file"}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_hard_transcripts_are_carried_verbatim(tmp_path, suffix):
    for name, text in HARD_TEXTS.items():
        sound(tmp_path / f"{name}.wav", 0.1)
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    items = import_rows("folder", str(tmp_path), ImportOptions(language="en"))
    manifest = tmp_path / f"m{suffix}"
    write_manifest(manifest, (item for item in items if isinstance(item, Row)))
    assert {row.id.removesuffix(".wav"): row.transcript for row in read_manifest(manifest)} == HARD_TEXTS
    if suffix == ".jsonl":
        assert manifest.read_bytes().count(b"\n") == len(HARD_TEXTS)


# --- Lhotse ----------------------------------------------------------------------------------------------------------


def recording(path, **changes):
    source = {"type": "file", "channels": [0], "source": str(path)}
    return {
        "id": "rec", "sources": [source | changes.pop("source", {})], "sampling_rate": RATE, "num_samples": 10 * RATE,
        "duration": 10.0, "channel_ids": [0],
    } | changes  # fmt: skip


def supervision(name, start, duration, **changes):
    return {"id": name, "recording_id": "rec", "start": start, "duration": duration, "channel": 0, "text": "Hello."} | (
        changes
    )


def cut(name, found, *supervisions, **changes):
    return {
        "id": name, "start": 0.0, "duration": 10.0, "channel": 0, "supervisions": list(supervisions),
        "recording": found, "type": "MonoCut",
    } | changes  # fmt: skip


def test_supervisions_of_a_long_cut_become_rows(tmp_path):
    audio = sound(tmp_path / "a long file.wav", 10)
    first = supervision("s1", 0.5, 2, language="English", speaker="tom", gender="M", custom={"dnsmos": 3.5})
    second = supervision("s2", -0.01, 4.01, text="你好。", language="Chinese", custom={"speaker": "clash"})
    cuts = [
        cut("c1", recording(audio), first, second, start=3.0, duration=5.0, custom={"book": "x"}),
        # The same recording, and a supervision without a language.
        cut("c2", recording(audio), supervision("s1", 8, 2)),
    ]
    with gzip.open(tmp_path / "cuts.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(item) + "\n" for item in cuts)
    rows, rejected = import_all("lhotse", tmp_path / "cuts.jsonl.gz")
    assert rows["s1"] == Row(
        id="s1",
        audio=str(audio),
        language="en",
        transcript="Hello.",
        offset_s=3.5,
        duration_s=2.0,
        speaker="tom",
        attributes={"gender": "male"},
        extra={"book": "x", "dnsmos": 3.5},
    )
    assert (rows["s2"].language, rows["s2"].offset_s) == ("zh", 2.99)
    assert rows["s2"].extra == {"book": "x", "custom_speaker": "clash"}
    assert rejected == {"s1": "no language"}
    rows, rejected = import_all("lhotse", tmp_path / "cuts.jsonl.gz", "en")
    assert (rows["c2-s1"].offset_s, rejected) == (8.0, {})


def test_cuts_without_one_file_and_text_are_set_aside(tmp_path):
    mono, stereo = sound(tmp_path / "a.wav", 10), sound(tmp_path / "b.wav", 10, channels=2)
    said = supervision("s", 1, 2)
    cuts = [
        cut("fine", recording(mono), said),
        cut("resampled", recording(mono, transforms=[{"name": "Resample", "kwargs": {}}]), said | {"id": "r"}),
        cut("faster", recording(mono, transforms=[{"name": "Speed", "kwargs": {"factor": 1.1}}]), said),
        cut("multi", recording(stereo), said, type="MultiCut", channel=[0, 1]),
        {"id": "mixed", "type": "MixedCut", "tracks": []},
        {"id": "padding", "type": "PaddingCut", "duration": 1.0},
        cut("stereo", recording(stereo, source={"channels": [0, 1]}), said),
        cut("command", recording("cat x.wav", source={"type": "command"}), said),
        cut("no recording", None, said),
        cut("no supervision", recording(mono)),
        cut("gone", recording(tmp_path / "gone.wav"), said | {"id": "gone"}),
        cut("partial", recording(mono), said | {"id": "partial"}, duration=2.0),
        cut("no text", recording(mono), said | {"id": "no text", "text": None}),
        cut("damaged", {"sources": 5}, said),
    ]
    path = write(tmp_path / "cuts.jsonl", *map(json.dumps, cuts), "{not json")
    rows, rejected = import_all("lhotse", path, "en")
    assert {*rows} == {"s", "r"}
    assert rejected == {
        "faster": "transformed audio",
        "multi": "kind of cut",
        "mixed": "kind of cut",
        "padding": "kind of cut",
        "stereo": "several channels",
        "command": "kind of source",
        "no recording": "no audio file",
        "no supervision": "no text",
        "gone": "no audio file",
        "partial": "cut off",
        "no text": "no text",
        "damaged": "no valid cut",
        "": "no valid JSON",
    }


def test_the_channel_of_a_cut_picks_its_file_and_urls_stay(tmp_path):
    left, right = sound(tmp_path / "left.wav"), "s3://bucket/right.wav"
    sources = [
        {"type": "file", "channels": [0], "source": str(left)},
        {"type": "url", "channels": [1], "source": right},
    ]
    cuts = [cut(f"c{n}", recording("", sources=sources), supervision(f"s{n}", 0, 1), channel=n) for n in (0, 1)]
    rows, _ = import_all("lhotse", write(tmp_path / "cuts.jsonl", *map(json.dumps, cuts)), "en")
    assert [row.audio for row in rows.values()] == [str(left), right]


def test_supervisions_find_their_recordings_in_the_manifest_beside(tmp_path):
    sound(tmp_path / "audio" / "a.wav", 10)
    folder = tmp_path / "manifests"
    found = recording("../audio/a.wav")  # as Lhotse writes it when it runs in this folder
    write(folder / "x_recordings_dev.jsonl", json.dumps(found))
    write(folder / "x_supervisions_dev.jsonl", json.dumps(supervision("s", 1, 2)))
    write(folder / "x_supervisions_train.jsonl", json.dumps(supervision("t", 1, 2)))
    rows, rejected = import_all("lhotse", folder, "en", "dev")
    assert ([row.offset_s for row in rows.values()], rejected) == ([1.0], {})
    with pytest.raises(InputError, match=r"x_recordings_train.jsonl: no such file"):
        import_all("lhotse", folder, "en")
    with pytest.raises(InputError, match="of subset test"):
        import_all("lhotse", folder, "en", "test")
    with pytest.raises(InputError, match="lhotse copy"):
        import_all("lhotse", write(folder / "cuts.yaml", "- id: x"), "en")


WRITE_CUTS = """
import sys
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
recording = Recording.from_file(sys.argv[1])
said = [SupervisionSegment("s1", recording.id, 0.5, 1.5, text="Not “again”.", language="English", speaker="x",
                           gender="F"),
        SupervisionSegment("s2", recording.id, 2.0, 1.0, text="Go.", language="English", custom={"snr": 20.5})]
cut = MonoCut("c", 0, recording.duration, 0, recording=recording, supervisions=said)
other = cut.truncate(offset=1.8).with_id("late")
CutSet.from_cuts([cut, cut.append(other).with_id("mix"), other.resample(16000).with_id("rs")]).to_file(sys.argv[2])
"""


@pytest.mark.torch
def test_a_cut_set_that_lhotse_wrote(tmp_path):
    if subprocess.run([sys.executable, "-c", "import lhotse"], capture_output=True).returncode:
        pytest.skip("lhotse is not installed")
    audio, cuts = sound(tmp_path / "a é.wav", 4), tmp_path / "cuts.jsonl.gz"
    subprocess.run([sys.executable, "-c", WRITE_CUTS, audio, cuts], check=True)
    rows, rejected = import_all("lhotse", cuts)
    spans = {name: (row.audio, row.transcript, row.offset_s, row.duration_s) for name, row in rows.items()}
    assert spans == {
        "s1": (str(audio), "Not “again”.", 0.5, 1.5),
        "s2": (str(audio), "Go.", 2.0, 1.0),
        "rs-s2": (str(audio), "Go.", 2.0, 1.0),
    }
    assert (rows["s1"].attributes, rows["s2"].extra) == ({"gender": "female"}, {"snr": 20.5})
    assert rejected == {"mix": "kind of cut", "s1": "cut off"}


# --- Kaldi -----------------------------------------------------------------------------------------------------------


def test_a_kaldi_folder_with_segments(tmp_path):
    audio = sound(tmp_path / "call one.wav", 10)
    write(tmp_path / "wav.scp", f"rec1 {audio}", "rec2 call one.wav")
    write(tmp_path / "segments", "u1 rec1 0.5 2.25", "u2 rec2 4 -1", "u3 rec9 0 1", "u4 rec1 3 2")
    write(tmp_path / "text", "u2  GO ON", "u1 HELLO  THERE", "u3 X", "u4 Y", "u5 Z")
    write(tmp_path / "utt2spk", "u1 tom", "u2 eva")
    write(tmp_path / "spk2gender", "tom m", "eva f")
    write(tmp_path / "utt2lang", "u2 zh")
    rows, rejected = import_all("kaldi", tmp_path, "en")
    assert rows["u1"] == Row(
        id="u1",
        audio=str(audio),
        language="en",
        transcript="HELLO  THERE",
        offset_s=0.5,
        duration_s=1.75,
        speaker="tom",
        attributes={"gender": "male"},
    )
    assert (rows["u2"].audio, rows["u2"].duration_s, rows["u2"].language) == (str(audio), 6.0, "zh")
    assert rejected == {"u3": "no audio file", "u4": "no segment", "u5": "no segment"}


def test_a_kaldi_folder_of_whole_files(tmp_path):
    write(tmp_path / "wav.scp", f"u1 {sound(tmp_path / 'a.wav', 1)}")
    write(tmp_path / "text", "u1 hello")
    rows, _ = import_all("kaldi", tmp_path, "en")
    assert (rows["u1"].offset_s, rows["u1"].duration_s) == (0.0, 1.0)
    _, rejected = import_all("kaldi", tmp_path)
    assert rejected == {"u1": "no language"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("u1 sph2pipe -f wav x.sph |", "wav.scp: line 1: 'u1' is a command, which is never run"),
        ("u1 raw/data.ark:17", r"wav.scp: line 1: 'u1' lies in an archive \(.ark\)"),
    ],
)
def test_commands_and_archives_in_kaldi_folders_are_refused(tmp_path, line, message):
    write(tmp_path / "wav.scp", line)
    write(tmp_path / "text", "u1 hello")
    with pytest.raises(InputError, match=message):
        import_all("kaldi", tmp_path, "en")


# --- published corpora -----------------------------------------------------------------------------------------------


def long_recordings(folder, suffix="opus"):
    """As both corpora list them; the audio is WAV under another name, which libsndfile does not mind."""
    audio = sound(folder / "audio/x/R1.wav", 10)
    audio.rename(folder / f"audio/x/R1.{suffix}")
    return {"aid": "R1", "duration": 10.0, "path": f"audio/x/R1.{suffix}", "source": "youtube", "md5": "0"}


def test_gigaspeech(tmp_path):
    texts = {
        "R1_S0": ("AS I SAID <COMMA> I'M ON IT <PERIOD> ARE YOU <QUESTIONMARK>", ["{XL}", "{S}"]),
        "R1_S1": ("<MUSIC>", ["{XL}"]),
        "R1_S2": ("NO <EXCLAMATIONPOINT>", ["{XL}"]),
    }
    segments = [
        {"sid": name, "speaker": "N/A", "begin_time": 2.5 * number, "end_time": 2.5 * number + 2, "text_tn": text,
         "subsets": subsets}
        for number, (name, (text, subsets)) in enumerate(texts.items())
    ]  # fmt: skip
    audio = long_recordings(tmp_path) | {"segments": segments, "category": "Arts", "subsets": ["{XL}", "{S}"]}
    write_json(tmp_path / "GigaSpeech.json", {"dataset": "GigaSpeech", "language": "EN", "audios": [audio]})
    rows, rejected = import_all("gigaspeech", tmp_path)
    assert rows["R1_S0"] == Row(
        id="R1_S0",
        audio=f"{tmp_path}/audio/x/R1.opus",
        language="en",
        transcript="As I said, I'm on it. Are you?",
        offset_s=0.0,
        duration_s=2.0,
        extra={"published_text": texts["R1_S0"][0], "source": "youtube", "category": "Arts"},
    )
    assert (rows["R1_S2"].transcript, rows["R1_S2"].offset_s) == ("No!", 5.0)
    assert rejected == {"R1_S1": "garbage tag"}
    assert {*import_all("gigaspeech", tmp_path, subset="s")[0]} == {"R1_S0"}
    with pytest.raises(InputError, match="has no subset M; it has S, XL"):
        import_all("gigaspeech", tmp_path, subset="M")


def test_wenetspeech(tmp_path):
    segments = [
        {
            "sid": "R1_S0",
            "confidence": 1.0,
            "begin_time": 0.5,
            "end_time": 3.25,
            "subsets": ["L", "S"],
            "text": "还好吗",
        },
        {"sid": "R1_S1", "confidence": 0.7, "begin_time": 4, "end_time": 5, "subsets": ["W"], "text": "挺好的"},
        {"sid": "R1_S2", "confidence": 0.9, "begin_time": 6, "end_time": 5, "subsets": ["L"], "text": "错"},
    ]
    audio = long_recordings(tmp_path) | {"segments": segments, "tags": ["drama"]}
    index = write_json(tmp_path / "WenetSpeech.json", {"audios": [audio]})
    rows, rejected = import_all("wenetspeech", tmp_path)
    assert [(row.transcript, row.offset_s, row.duration_s, row.language) for row in rows.values()] == [
        ("还好吗", 0.5, 2.75, "zh"),
        ("挺好的", 4.0, 1.0, "zh"),
    ]
    assert rows["R1_S1"].extra == {"confidence": 0.7, "source": "youtube", "tags": ["drama"]}
    assert rejected == {"R1_S2": "no times"}
    assert {*import_all("wenetspeech", tmp_path, subset="L")[0]} == {"R1_S0"}
    index.write_bytes(index.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"WenetSpeech.json: damaged after 0 recordings .*download it again"):
        import_all("wenetspeech", tmp_path)


@pytest.mark.parametrize("table", ["SPEAKERS.txt", "speakers.tsv"])
def test_libritts(tmp_path, table):
    lines = {
        "SPEAKERS.txt": [";ID  |SEX| SUBSET           |MINUTES| NAME", "84   | F | dev-clean | 8.02 | Christie"],
        "speakers.tsv": ["READER\tGENDER\tSUBSET\tNAME", "84\tF\tdev-clean\tChristie"],
    }
    write(tmp_path / table, *lines[table])
    chapter = tmp_path / "dev-clean" / "84" / "121123"
    for name in ("84_121123_000007_000001", "84_121123_000008_000000"):
        sound(chapter / f"{name}.wav", 2)
    (chapter / "84_121123_000007_000001.normalized.txt").write_text("Doctor Brown.")
    (chapter / "84_121123_000007_000001.original.txt").write_text("Dr. Brown.")
    (chapter / "._84_121123_000007_000001.wav").touch()
    write(chapter / "84_121123.trans.tsv", "84_121123_000007_000001\tDr. Brown.\tDoctor Brown.")
    expected = Row(
        id="84_121123_000007_000001",
        audio=f"{chapter}/84_121123_000007_000001.wav",
        language="en",
        transcript="Doctor Brown.",
        duration_s=2.0,
        speaker="84",
        attributes={"gender": "female"},
    )
    for source, subset in ((tmp_path, None), (tmp_path, "dev-clean"), (tmp_path / "dev-clean", None)):
        rows, rejected = import_all("libritts", source, subset=subset)
        assert (rows, rejected) == ({expected.id: expected}, {"84_121123_000008_000000": "no text"})
    with pytest.raises(InputError, match="test-clean: no such file or folder"):
        import_all("libritts", tmp_path, subset="test-clean")


def test_aishell3(tmp_path):
    write(
        tmp_path / "spk-info.txt",
        "# AISHELL-3 speakers",
        "# age groups, In years, A:< 14, B:14 - 25, C:26 - 40, D:> 41.",
        "",
        "SSB0005\tB\tfemale\tnorth",
        "SSB0073\tD\tmale\tsouth",
    )
    sound(tmp_path / "train/wav/SSB0005/SSB00050001.wav")
    sound(tmp_path / "test/wav/SSB0073/SSB00730005.wav")
    write(
        tmp_path / "train" / "content.txt",
        "SSB00050001.wav\t广 guang3 州 zhou1 玩儿 wanr2",
        "SSB00050002.wav\t好 hao3",
        "SSB00050003.wav\t好 hao3 的",
    )
    write(tmp_path / "test" / "content.txt", "SSB00730005.wav\t好 hao3")
    rows, rejected = import_all("aishell3", tmp_path)
    assert rows["SSB00050001"] == Row(
        id="SSB00050001",
        audio=f"{tmp_path}/train/wav/SSB0005/SSB00050001.wav",
        language="zh",
        transcript="广州玩儿",
        duration_s=1.0,
        speaker="SSB0005",
        attributes={"gender": "female", "age": "young"},
        extra={"pinyin": "guang3 zhou1 wanr2", "age_band": "B", "accent": "north"},
    )
    assert rows["SSB00730005"].attributes == {"gender": "male"}  # over 41: middle-aged and elderly can't be told apart
    assert rejected == {"SSB00050002": "no audio file", "SSB00050003": "text and pinyin"}
    assert {*import_all("aishell3", tmp_path, subset="test")[0]} == {"SSB00730005"}


def test_textrolspeech(tmp_path):
    sound(tmp_path / "emotion_dataset/ESD/0011_1.wav")
    sound(tmp_path / "libritts/84_1.wav")
    (tmp_path / "libritts/84_1.normalized.txt").write_text('He said "no".')
    write(
        tmp_path / "caption" / "random_train.csv",
        "num,wav_fp,item_name,gender,pitch,tempo,energy,emotion,style_prompt,content_prompt",
        '0,emotion_dataset/ESD/0011_1.wav,0011_1.wav,F,low,high,normal,sad,"Quickly, she talks low.",Not again.',
        '1,libritts/84_1.wav,84_1,M,normal,low,high,neutral,"He calls it ""slow"".",',
    )
    rows, rejected = import_all("textrolspeech", tmp_path)
    assert rows["0011_1"] == Row(
        id="0011_1",
        audio=f"{tmp_path}/emotion_dataset/ESD/0011_1.wav",
        language="en",
        transcript="Not again.",
        duration_s=1.0,
        instructions=('Quickly, she talks low. "Not again."',),
        attributes={"gender": "female", "pitch": "low", "energy": "normal", "speed": "fast", "emotion": "sad"},
        extra={"style_prompt": "Quickly, she talks low."},
    )
    assert rows["84_1"].transcript == 'He said "no".'
    assert rows["84_1"].attributes["speed"] == "slow"
    assert rejected == {}
    write(tmp_path / "caption" / "other.csv", "item_name,text", "a,b")
    with pytest.raises(InputError, match="name one caption table"):
        import_all("textrolspeech", tmp_path)
    with pytest.raises(InputError, match=r"lacks columns: gender \(gender\); style"):
        import_all("textrolspeech", tmp_path / "caption" / "other.csv")


# --- all -------------------------------------------------------------------------------------------------------------


def test_a_manifest_passes_through(tmp_path):
    row = Row(id="a", audio=str(sound(tmp_path / "a.wav")), language="en", transcript="Hi.", duration_s=1.0)
    write_manifest(tmp_path / "m.jsonl", [row])
    with (tmp_path / "m.jsonl").open("a") as file:
        file.write('{"id": "b"}\n')
    rows, rejected = import_all("manifest", tmp_path / "m.jsonl")
    assert (rows, rejected) == ({"a": row}, {"b": "column 'audio'"})


@pytest.mark.parametrize("name", FORMATS)
def test_a_source_that_is_not_there_is_named(tmp_path, name):
    with pytest.raises(InputError, match="nowhere"):
        import_all(name, tmp_path / "nowhere", "en")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("wav", {}, "no format 'wav'; known: folder, "),
        ("ljspeech", {}, "does not say its language; give --language en"),
        ("kaldi", {"subset": "dev"}, "kaldi: has no subsets"),
    ],
)
def test_wrong_use_is_told(tmp_path, name, options, message):
    with pytest.raises(ConfigError, match=message):
        import_rows(name, str(tmp_path), ImportOptions(**options))


def test_remote_sources_are_read(tmp_path):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/corpus/sub/a.wav", b"x")
    memory.pipe("/corpus/sub/a.txt", b"Hello.")
    rows, _ = import_all("folder", "memory://corpus", "en")
    assert [(row.audio, row.duration_s) for row in rows.values()] == [("memory:///corpus/sub/a.wav", None)]


def test_rows_come_before_the_source_is_read_to_its_end(tmp_path):
    audio = long_recordings(tmp_path)
    segment = {"sid": "S", "confidence": 1.0, "begin_time": 0, "end_time": 3, "subsets": [], "text": "还好吗"}
    recordings = [audio | {"segments": [segment | {"sid": f"S{number}"}]} for number in range(2000)]
    index = write_json(tmp_path / "WenetSpeech.json", {"audios": recordings})
    index.write_bytes(index.read_bytes()[:-200])
    rows = import_rows("wenetspeech", str(tmp_path), ImportOptions())
    assert isinstance(next(rows), Row)
    with pytest.raises(InputError, match=r"damaged after 1[0-9]+ recordings"):
        list(rows)


def test_a_table_on_disk_keeps_the_last_of_equal_keys():
    table = DiskTable([("a", "1"), ("b\udcff", "2"), ("a", "3")])
    assert [table.get(key) for key in ("a", "b\udcff", "c")] == ["3", "2", None]
    assert not DiskTable([])
