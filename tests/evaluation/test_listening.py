"""Listening tests: hidden systems, a real browser that answers, and what the answers say."""

import json
import re
from itertools import pairwise

import numpy as np
import pytest

from voxinstruct_jax.audio.waveform import read_audio, write_audio
from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.evaluation.listening import ANCHOR, REFERENCE, ListeningItem, export_test
from voxinstruct_jax.evaluation.listening_answers import Rating, analyse, bradley_terry, read_ratings


@pytest.fixture
def items(tmp_path):
    """Four requests of two systems, one of them four times as loud, with references."""
    generator = np.random.default_rng(0)
    found = []
    for number in range(4):
        audio = {}
        for system, level in {"ours": 0.2, "theirs": 0.05, "truth": 0.1}.items():
            audio[system] = tmp_path / f"{system}_{number}.wav"
            samples = level * generator.standard_normal(6000).astype(np.float32).clip(-3, 3)
            write_audio(audio[system], samples, 24_000, tag="noise")
        reference = audio.pop("truth")
        text = f'A <b>man</b> says: "{number}"'
        item = ListeningItem(
            id=f"i{number}", instruction=text, transcript=str(number), audio=audio, reference=reference
        )
        found.append(item)
    return found


def config(folder):
    text = (folder / "config.js").read_text()
    return json.loads(re.sub(r"^window.TEST = |;\n$", "", text))


def test_every_rater_hears_each_item_once_and_all_voices_are_heard_equally(items, tmp_path):
    out = tmp_path / "mos"
    key = json.loads(export_test("mos", items, out, raters=6, seed=1).read_text())
    test = config(out)
    assert len(test["pages"]) == 8
    heard = np.zeros((4, 2))
    for order in test["orders"]:
        samples = [test["pages"][page]["samples"] for page in order]
        assert all(len(group) == 1 for group in samples)
        spoken = [key["samples"][group[0]] for group in samples[:4]]
        assert sorted(sample["item"] for sample in spoken) == ["i0", "i1", "i2", "i3"]
        for sample in spoken:
            heard[int(sample["item"][1]), ["ours", "theirs"].index(sample["system"])] += 1
    assert (heard == 3).all()
    text = "".join(path.read_text() for path in out.glob("*.*"))
    assert "ours" not in text
    assert "theirs" not in text
    assert not any("<b>" in line for line in (out / "config.js").read_text().splitlines())


def test_all_sounds_are_equally_loud_unless_loudness_is_judged(items, tmp_path):
    def levels(folder):
        return [np.sqrt(np.mean(read_audio(path, 24_000) ** 2)) for path in sorted((folder / "audio").iterdir())]

    export_test("cmos", items, tmp_path / "even", raters=1)
    even = levels(tmp_path / "even")
    assert max(even) / min(even) < 1.05
    export_test("cmos", items, tmp_path / "uneven", raters=1, aspect="instruction", keep_levels=True)
    uneven = levels(tmp_path / "uneven")
    assert max(uneven) / min(uneven) > 3


def test_mushra_hides_a_reference_and_an_anchor(items, tmp_path):
    out = tmp_path / "mushra"
    key = json.loads(export_test("mushra", items[:1], out, raters=1).read_text())
    systems = {sample["system"]: name for name, sample in key["samples"].items()}
    assert set(systems) == {"ours", "theirs", REFERENCE, ANCHOR}
    spectrum = np.abs(np.fft.rfft(read_audio(out / "audio" / systems[ANCHOR], 24_000))) ** 2
    hz = np.fft.rfftfreq(6000, 1 / 24_000)
    assert spectrum[hz > 3600].sum() < 1e-4 * spectrum.sum()


def test_webmushra_gets_the_test_and_its_answers_are_read(items, tmp_path):
    import yaml

    out = tmp_path / "mushra"
    write_audio(items[0].audio["ours"], np.full(9000, 0.1, np.float32), 24_000, tag="longer than the others")
    place = export_test("mushra", items[:2], out, raters=1)
    key, config = json.loads(place.read_text()), yaml.safe_load((out / "webmushra.yaml").read_text())
    word, *trials = config["pages"][0]
    assert (word, [trial["type"] for trial in trials]) == ("random", ["mushra", "mushra"])
    assert "&lt;b&gt;man" in trials[0]["content"]
    rows = ["session_test_id,email,session_uuid,trial_id,rating_stimulus,rating_score,rating_time,rating_comment"]
    for trial in trials:
        names = [trial["reference"], *trial["stimuli"].values()]
        assert {name.rpartition("/")[0] for name in names} == {"configs/mushra/audio"}
        lengths = {len(read_audio(out.parent / name.removeprefix("configs/"), 24_000)) for name in names}
        assert len(lengths) == 1  # webMUSHRA stops where they differ
        systems = {name: key["samples"][name]["system"] for name in trial["stimuli"]}
        assert sorted(systems.values()) == [ANCHOR, "ours", "theirs"]
        scores = {"ours": 80, "theirs": 60, ANCHOR: 10}
        for name, score in [("reference", 100), *((name, scores[system]) for name, system in systems.items())]:
            rows += [f"{config['testId']},x@y,{who},{trial['id']},{name},{score},1,none" for who in ("s1", "s2")]
    answers = tmp_path / "mushra.csv"
    answers.write_text("\n".join(rows))
    _, ratings = read_ratings(place, [answers])
    means = {name: each["mean"] for name, each in analyse("mushra", ratings)["all"]["systems"].items()}
    assert means == {"ours": 80, "theirs": 60, ANCHOR: 10, REFERENCE: 100}
    assert {rating.rater for rating in ratings} == {1, 2}
    answers.write_text(answers.read_text().replace(config["testId"], "another"))
    with pytest.raises(InputError, match="no answers to test"):
        read_ratings(place, [answers])


def test_items_that_do_not_fit_the_test_are_named(items, tmp_path):
    bare = [ListeningItem(id="x", instruction="", transcript="", audio={"ours": items[0].audio["ours"]})]
    for kind, given, message in (
        ("mos", [], "at least one item"),
        ("mos", [items[0], *bare], "x: spoken by other systems than i0"),
        ("cmos", bare, "cmos compares two systems, got 1: ours"),
        ("mushra", bare, "x: has no reference"),
    ):
        with pytest.raises(ConfigError, match=message):
            export_test(kind, given, tmp_path / "out", raters=1)


@pytest.mark.parametrize("kind", ["mos", "cmos", "mushra"])
def test_a_listener_answers_in_a_browser_and_the_answers_are_read(items, tmp_path, browser_page, kind):
    out = tmp_path / kind
    key = export_test(kind, items[:2], out, raters=2, seed=3)
    page = browser_page
    problems = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    page.goto(f"{(out / 'index.html').as_uri()}?rater=2")
    for _ in range(2):
        assert page.locator("#next").is_disabled()
        if kind == "mushra":
            for slider in page.locator("input[type=range]").all():
                slider.fill("77")
        else:
            page.locator("input[name=score]").last.check()
        assert page.locator("#next").is_disabled()  # nothing was heard yet
        for audio in page.locator("audio").all():
            audio.evaluate("node => node.play().then(() => new Promise(end => node.addEventListener('ended', end)))")
        page.locator("#next").click()
    with page.expect_download() as download:
        page.locator("#save").click()
    answers = tmp_path / "answers.json"
    download.value.save_as(answers)
    assert problems == []
    test, ratings = read_ratings(key, [answers])
    assert test["kind"] == kind
    assert {rating.rater for rating in ratings} == {2}
    scores = sorted({(rating.system, rating.score) for rating in ratings})
    if kind == "mushra":
        assert {score for _, score in scores} == {77}
        assert len(ratings) == 8
    elif kind == "cmos":  # "second much better": as often the one as the other was played second
        assert len(ratings) == 4
        assert all(one.score == -other.score == -3 for one, other in list(pairwise(ratings))[::2])
    else:
        assert [rating.score for rating in ratings] == [5, 5]
    answers.write_text(json.dumps(json.loads(answers.read_text()) | {"test": "else"}))
    with pytest.raises(InputError, match="answers of test else"):
        read_ratings(key, [answers])


def simulated(generator, better, *, raters=30, items=40, careless=()):
    """MOS ratings whose true means differ by `better`; the careless answer at random."""
    ratings = []
    moods, difficulty = generator.normal(0, 0.3, raters), generator.normal(0, 0.3, items)
    for rater in range(raters):
        for item in range(items):
            system = ("a", "b")[(rater + item) % 2]
            score = 3 + better * (system == "b") + moods[rater] + difficulty[item] + generator.normal(0, 0.7)
            answers = [score, score + generator.normal(0, 0.3)]
            if rater in careless:
                answers = generator.uniform(1, 5, 2).tolist()
            ratings.append(Rating(rater=rater, item=str(item), system=system, score=answers[0]))
            if item < 4:
                ratings.append(Rating(rater=rater, item=str(item), system=system, score=answers[1], again=True))
    return ratings


def test_intervals_hold_the_truth_and_careless_listeners_are_found():
    found = analyse("mos", simulated(np.random.default_rng(0), 0.5, careless=(3, 17)))
    assert set(found["failed"]) <= {"3", "17"}
    assert found["failed"]
    for name, truth in {"a": 3.0, "b": 3.5}.items():
        score = found["trusted"]["systems"][name]
        low, high = score["interval"]
        assert low < truth < high
        for narrower in ("interval_by_rater", "interval_by_item"):
            assert high - low > score[narrower][1] - score[narrower][0]
    assert found["trusted"]["raters"] == 30 - len(found["failed"])
    assert found["trusted"]["elo"]["b"] > 0 > found["trusted"]["elo"]["a"]


def test_a_mushra_listener_who_misses_the_reference_is_left_out():
    ratings = [
        Rating(rater=rater, item=str(item), system=system, score=score)
        for rater, reference in ((1, 97.0), (2, 60.0))
        for item in range(10)
        for system, score in (("a", 50.0), (REFERENCE, reference))
    ]
    found = analyse("mushra", ratings)
    assert list(found["failed"]) == ["2"]
    assert found["trusted"]["systems"][REFERENCE]["mean"] == 97


def test_three_wins_of_four_are_191_points():
    ratings = bradley_terry(np.array([[0, 3], [1, 0]], float))
    assert ratings[0] - ratings[1] == pytest.approx(190.8, abs=0.1)
    chain = bradley_terry(np.array([[0, 10, 0], [1, 0, 10], [0, 1, 0]], float))
    assert np.diff(chain) == pytest.approx([-400, -400], rel=0.01)
