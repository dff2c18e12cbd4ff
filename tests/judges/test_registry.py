import importlib.metadata

import pytest

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.judges.judge import Measurement
from voxinstruct_jax.judges.prosody import EnergyJudge
from voxinstruct_jax.judges.registry import ENTRY_POINTS, OFFLINE, find_judges, judge_places

HERE = "test_registry"


class Mood:
    attribute, name, unit = "emotion", "mood/1", ""

    def measure(self, clip):
        return Measurement(label="calm", confidence=0.5)


class Unfinished:
    attribute, name = "emotion", "mood/1"


class NeedsWeights(Mood):
    def __init__(self):
        raise InputError("mood.npz not found: put it beside the manifest")


@pytest.fixture(autouse=True)
def importable(monkeypatch, request):
    monkeypatch.syspath_prepend(request.path.parent)


def test_every_offline_judge_keeps_the_interface():
    judges = find_judges(tuple(OFFLINE), OFFLINE)
    assert list(judges) == ["gender", "pitch", "energy", "speed"]
    assert all(judge.attribute == name and judge.name for name, judge in judges.items())
    assert len({judge.name for judge in judges.values()}) == len(judges)


@pytest.mark.parametrize("attribute", ["emotion", "age"])
def test_what_nothing_offline_can_judge_is_said_and_not_invented(attribute):
    with pytest.raises(ConfigError, match=f"{attribute}: no judge comes.*--judge {attribute}=MODULE:CLASS"):
        find_judges((attribute,), judge_places({}))


def test_a_class_named_by_hand_judges():
    judges = find_judges(("emotion", "energy"), judge_places({"emotion": f"{HERE}:Mood"}))
    assert judges["emotion"].measure(None).label == "calm"
    assert isinstance(judges["energy"], EnergyJudge)


def test_an_entry_point_offers_a_judge_and_the_command_line_comes_first(monkeypatch):
    point = importlib.metadata.EntryPoint("energy", "my.loudness:Judge", ENTRY_POINTS)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [point] if group == ENTRY_POINTS else [])
    assert judge_places({})["energy"] == "my.loudness:Judge"
    assert judge_places({"energy": "own:Judge"})["energy"] == "own:Judge"
    assert judge_places({})["pitch"] == OFFLINE["pitch"]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("no.such.module:Mood", "cannot be opened.*No module"),
        (f"{HERE}:Nobody", "cannot be opened.*Nobody"),
        (f"{HERE}:", "cannot be opened"),
        (f"{HERE}:Unfinished", "lacks unit, measure"),
    ],
)
def test_a_wrong_place_costs_one_line(place, message):
    with pytest.raises(ConfigError, match=message) as error:
        find_judges(("emotion",), {"emotion": place})
    assert "\n" not in str(error.value)


def test_a_judge_of_something_else_is_refused():
    with pytest.raises(ConfigError, match="judges emotion"):
        find_judges(("age",), {"age": f"{HERE}:Mood"})


def test_a_judge_says_itself_what_weights_it_needs():
    with pytest.raises(InputError, match=r"put it beside the manifest"):
        find_judges(("emotion",), {"emotion": f"{HERE}:NeedsWeights"})
