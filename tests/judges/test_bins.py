import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxinstruct_jax.config import InputError
from voxinstruct_jax.judges.bins import (
    CLASSES,
    AttributeBins,
    Bins,
    Bounds,
    Value,
    carry_bins,
    classify,
    fit_bins,
    group,
    load_bins,
    save_bins,
)

JUDGES = {"pitch": ("tracker/1", "Hz")}


def pitches(values, name="en/female"):
    return [Value(attribute="pitch", group=name, value=float(value)) for value in values]


def exact(lower, upper):
    return Bins(
        corpus="by hand",
        attributes={
            "pitch": AttributeBins(
                judge="j", unit="Hz", groups={"en/female": Bounds(lower=lower, upper=upper, count=0)}
            )
        },
    )


@given(st.lists(st.integers(600, 5000), min_size=3, max_size=200, unique=True))
def test_classes_of_different_values_are_thirds(tenths):
    values = [value / 10 for value in tenths]
    bins = fit_bins(pitches(values), JUDGES, "c")
    found = [classify(bins, "pitch", "en/female", value, 0.0) for value in values]
    counts = [sum(label == name for label, _ in found) for name in CLASSES["pitch"]]
    assert sum(counts) == len(values)
    assert max(counts) - min(counts) <= 2


def test_groups_have_boundaries_of_their_own():
    women, men = np.linspace(160, 260, 301), np.linspace(80, 160, 301)
    bins = fit_bins([*pitches(women), *pitches(men, "en/male")], JUDGES, "c")
    groups = bins.attributes["pitch"].groups
    assert groups["en/female"].lower == pytest.approx(160 + 100 / 3, abs=0.4)
    assert groups["en/male"].upper == pytest.approx(80 + 160 / 3, abs=0.4)
    assert groups["en/male"].count == 301
    assert classify(bins, "pitch", "en/female", 150.0, 1.0)[0] == "low"
    assert classify(bins, "pitch", "en/male", 150.0, 1.0)[0] == "high"
    assert classify(bins, "pitch", "fr/male", 150.0, 1.0) is None
    assert classify(bins, "energy", "en", -20.0, 1.0) is None


def test_pitch_alone_is_relative_to_gender():
    assert group("pitch", "en", "female") == "en/female"
    assert group("pitch", "en", None) == "en/unknown"
    assert group("speed", "zh", "male") == "zh"


def test_two_clips_have_no_terciles():
    assert fit_bins(pitches([100, 200]), JUDGES, "c").attributes["pitch"].groups == {}


def test_confidence_is_the_chance_that_the_true_value_is_of_the_class():
    generator = np.random.default_rng(0)
    for value in (150.0, 198.0, 201.0, 215.0, 239.0, 300.0):
        label, confidence = classify(exact(200.0, 240.0), "pitch", "en/female", value, 8.0)
        true = value + generator.normal(scale=8.0, size=20_000)
        place = CLASSES["pitch"].index(label)
        assert confidence == pytest.approx(((true >= 200).astype(int) + (true > 240) == place).mean(), abs=0.015)
    assert classify(exact(200.0, 240.0), "pitch", "en/female", 200.0, 0.0) == ("normal", pytest.approx(0.5))


def test_boundaries_of_few_clips_make_less_sure():
    few, many = (fit_bins(pitches(np.linspace(160, 260, count)), JUDGES, "c") for count in (9, 900))
    near, far = (classify(bins, "pitch", "en/female", 240.0, 1.0) for bins in (few, many))
    assert near[0] == far[0] == "high"
    assert near[1] < 0.8 < 0.95 < far[1]


def test_boundaries_come_back_from_their_file(tmp_path):
    bins = fit_bins(pitches(np.linspace(160, 260, 50)), JUDGES, "my corpus")
    save_bins(tmp_path / "bins.json", bins)
    assert load_bins(tmp_path / "bins.json") == bins
    assert load_bins(tmp_path / "bins.json").fingerprint == bins.fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["bins.json"]
    assert fit_bins(pitches(np.linspace(160, 261, 50)), JUDGES, "my corpus").fingerprint != bins.fingerprint


def one_group(attribute, lower, upper):
    return {attribute: {"judge": "j", "unit": "", "groups": {"en": {"lower": lower, "upper": upper, "count": 3}}}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 9}, "format 9"),
        ({"corpus": 3}, "corpus: expected str"),
        ({"colour": 1}, "colour: unknown setting"),
        ({"attributes": one_group("mood", 1, 2)}, "no attribute with boundaries"),
        ({"attributes": one_group("pitch", 3, 2)}, "lower 3.0 above upper 2.0"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_with_its_fault(tmp_path, change, message):
    path = tmp_path / "bins.json"
    save_bins(path, exact(1.0, 2.0))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        load_bins(path)


def test_a_missing_or_torn_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="no readable boundaries"):
        load_bins(tmp_path / "bins.json")
    (tmp_path / "bins.json").write_text('{"corpus": "x"')
    with pytest.raises(InputError, match="no valid boundaries"):
        load_bins(tmp_path / "bins.json")


def test_boundaries_go_along_into_another_folder(tmp_path):
    bins = fit_bins([], {}, "none")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    carry_bins(tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "b" / "bins.json").exists()
    save_bins(tmp_path / "a" / "bins.json", bins)
    carry_bins(tmp_path / "a", tmp_path / "b")
    assert load_bins(tmp_path / "b" / "bins.json").fingerprint == bins.fingerprint
