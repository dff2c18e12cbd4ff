import itertools
import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxinstruct_jax.config import InputError
from voxinstruct_jax.jobs import plan as plans
from voxinstruct_jax.jobs.claims import Claims
from voxinstruct_jax.jobs.plan import estimate_syllables, open_plan, read_unit
from voxinstruct_jax.jobs.requests import Request
from voxinstruct_jax.jobs.results import file_name
from voxinstruct_jax.jobs.settings import JobSettings
from voxinstruct_jax.jobs.store import LocalStore


def planned(tmp_path, rows, out="out", **options):
    requests = tmp_path / f"{out}.jsonl"
    requests.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    store = LocalStore(str(tmp_path / out))
    with Claims(store) as claims:
        plan = open_plan(store, str(requests), JobSettings(), claims, **options)
    return plan, [read_unit(store, unit) for unit in plan.units]


def row(name, words=3):
    return {"id": name, "instruction": f'Say "{" ".join(["word"] * words)}"'}


def test_units_hold_requests_of_like_length_longest_first_and_each_request_once(tmp_path):
    chance = random.Random(0)
    rows = [row(f"r{number}", chance.choice([1, 2, 4, 8, 16, 32, 64])) for number in range(100)]
    plan, units = planned(tmp_path, rows, unit_size=10)
    lengths = [[estimate_syllables(one.request) for one in unit] for unit in units]
    assert all(min(longer) >= max(shorter) for longer, shorter in itertools.pairwise(lengths))
    assert sorted(one.request.id for unit in units for one in unit) == sorted(each["id"] for each in rows)
    assert [unit.syllables for unit in plan.units] == [sum(each) for each in lengths]
    assert plan.num_requests == 100


def test_every_id_is_planned_once_even_one_that_cannot_be_spoken(tmp_path):
    rows = [row("a", 1), row("b"), row("a", 2), {"id": "c"}, {"id": "c", "seed": -1}, {"instruction": 'Say "word"'}]
    plan, units = planned(tmp_path, rows)
    assert sorted((one.request.id, one.request.instruction, one.error) for unit in units for one in unit) == [
        ("a", 'Say "word"', ""),
        ("b", 'Say "word word word"', ""),
        ("c", "", "row 4: instruction: missing"),
    ]
    aside = [json.loads(line) for line in (tmp_path / "out/rejected.jsonl").read_text().splitlines()]
    assert plan.rejected == 3
    assert [(each["row"], each["id"]) for each in aside] == [(3, "a"), (5, "c"), (6, "")]
    assert "stands in row 1 already" in aside[0]["reason"]


def test_a_plan_of_which_the_index_is_missing_is_made_again(tmp_path, monkeypatch):
    rows = [row(f"r{number}") for number in range(9)]
    first, _ = planned(tmp_path, rows)
    (tmp_path / "out/plan/index.json").unlink()
    (tmp_path / "out/plan/unit-00003.jsonl").write_text("torn")
    again, units = planned(tmp_path, rows)
    assert again == first
    assert sum(map(len, units)) == 9
    monkeypatch.setattr(plans, "_write_plan", None)  # it is there, and not made once more
    assert planned(tmp_path, rows)[0] == first


def test_a_unit_file_that_was_cut_is_named(tmp_path):
    rows = [row("a"), row("b")]
    planned(tmp_path, rows, unit_size=2)
    path = tmp_path / "out/plan/unit-00000.jsonl"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(InputError, match=r"unit-00000\.jsonl is damaged"):
        planned(tmp_path, rows)


@given(st.lists(st.text(st.sampled_from("aAbB.é/É%"), min_size=1, max_size=4), unique=True, min_size=1, max_size=8))
def test_file_names_are_safe_and_distinct_even_without_case(tmp_path_factory, ids):
    ids = [each for each in ids if each.strip()]
    _, units = planned(tmp_path_factory.mktemp("plan"), [row(each) for each in ids])
    names = {one.request.id: one.name for unit in units for one in unit}
    assert sorted(names) == sorted(ids)
    assert len({name.lower() for name in names.values()}) == len(ids)
    for request_id, name in names.items():
        assert name.isascii()
        assert not set(name) & set('/\\:*?"<>| \0')
        assert not name.startswith(".")
        alone = all(other == request_id or other.lower() != request_id.lower() for other in ids)
        assert not alone or name == file_name(request_id, shared=False)


def test_ids_that_are_long_or_odd_have_names_of_their_own():
    names = {each: file_name(each, shared=False) for each in ["../x", "x" * 500, "x" * 499 + "y", "plain-1"]}
    assert names["plain-1"] == "plain-1"
    assert names["../x"] == "%2E.%2Fx"
    assert len(set(names.values())) == 4
    assert max(map(len, names.values())) < 200


@pytest.mark.parametrize(
    ("instruction", "changes", "expected"),
    [
        ('Say slowly: "Hello there"', {}, 4),
        ("慢慢地说：“你好吗”", {}, 3),
        ("Speak", {"transcript": "go two 三"}, 3),
        ('Say "room 12"', {}, 4),
        ('Say "' + "la " * 90 + '"', {"max_duration_s": 2.0}, 10),
        ("nothing quoted", {}, 4),
        (r'{"text": "\u4f60\u597d", "voice": "an old man who speaks slowly"}', {}, 2),
    ],
)
def test_syllables_are_estimated_from_what_is_to_be_spoken(instruction, changes, expected):
    assert estimate_syllables(Request(id="a", instruction=instruction, **changes)) == expected
