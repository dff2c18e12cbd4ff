import json

import pytest

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.evaluation.compare import System, compare, comparison_table, open_system, write_comparison
from voxinstruct_jax.evaluation.experiment import CompareExperiment, Speaking, ablation
from voxinstruct_jax.guidance import Guidance


def record(name, errors, *, seed=0, words=10.0, mos=3.0, failed=False):
    metrics = {
        "wer.vox": {"n": errors, "d": words, "value": errors / words, "status": "failed" if failed else "ok"},
        "mos.dnsmos.ovrl": {"n": mos, "d": 1.0, "value": mos, "status": "ok"},
        "f0.median": {"n": None if failed else 200.0, "d": 1.0, "value": None, "status": "ok"},
    }
    return {"id": f"{name}-{seed}", "request_sha256": name, "seed": seed, "transcript": name, "metrics": metrics}


def system(name, records, **judges):
    return System(name=name, records=records, judges={"asr": "parrot/1", **judges}, values={"wer.vox": 0.1, "rtf": 0.5})


def records(count, errors=lambda place: 1.0, **more):
    return [record(f"sentence {place}", errors(place), **more) for place in range(count)]


def rows(*systems, **settings):
    found = compare(systems, **settings)
    return {(row.system, row.metric): row for row in found.rows}


def test_equal_systems_differ_by_nothing():
    found = rows(system("a", records(40)), system("b", records(40)))
    row = found["b", "wer.vox"]
    assert (row.difference, row.ci_low, row.ci_high, row.p_holm) == (0, 0, 0, 1)
    assert (row.wins, row.ties, row.losses) == (0, 40, 0)


def test_a_known_difference_is_found_with_its_size_and_direction():
    found = rows(system("a", records(40)), system("b", records(40, lambda place: 1.0 + (place % 2), mos=3.5)))
    row = found["b", "wer.vox"]
    assert row.difference == pytest.approx(0.05)
    assert row.ci_low > 0
    assert row.p <= row.p_holm < 0.01
    assert (row.wins, row.ties, row.losses) == (0, 20, 20)
    assert (found["b", "mos.dnsmos.ovrl"].wins, found["b", "f0.median"].wins) == (40, None)


def test_an_item_that_failed_in_one_system_stays_as_a_failure():
    worse = [*records(19), record("sentence 19", 10.0, failed=True)]
    found = rows(system("a", records(20)), system("b", worse))
    assert found["b", "wer.vox"].evaluated == 20
    assert found["b", "wer.vox"].difference == pytest.approx(9 / 200)
    assert (found["b", "f0.median"].evaluated, found["b", "f0.median"].total) == (19, 20)


def test_too_few_sentences_that_differ_are_no_claim_and_it_says_so():
    for worse, said in ((3, "differs on 3 of 6 sentences that a claim needs"), (8, "")):
        found = rows(system("a", records(40)), system("b", records(40, lambda place, n=worse: 1.0 + 9 * (place < n))))
        assert found["b", "wer.vox"].note == said
        assert (found["b", "wer.vox"].p < 0.05) == (said == "")
    assert found["b", "mos.dnsmos.ovrl"].note == ""


def test_takes_of_one_request_are_averaged_first():
    many = [record(f"sentence {place}", errors, seed=None) for place in range(10) for errors in (0.0, 2.0)]
    found = rows(system("a", records(10)), system("b", many))
    assert found["b", "wer.vox"].difference == 0
    assert found["b", "wer.vox"].total == 10


def test_seeds_must_agree_where_both_have_one():
    with pytest.raises(InputError, match="only 0%"):
        rows(system("a", records(10)), system("b", records(10, seed=1)))


def test_too_few_partners_are_refused_and_named_or_let_pass():
    pair = system("a", records(10)), system("b", records(8))
    with pytest.raises(InputError, match=r"only 80%.*a: sentence 8-0, sentence 9-0.*--match id.*--allow-partial"):
        compare(pair)
    found = compare(pair, allow_partial=True)
    assert (found.matched, found.lost) == (8, {"a": ["sentence 8-0", "sentence 9-0"], "b": []})


def test_ids_alone_join_speech_of_another_origin():
    other = [{**each, "request_sha256": "?" + each["request_sha256"]} for each in records(10)]
    assert compare([system("a", records(10)), system("b", other)], match="id").matched == 10


def test_other_judges_and_equal_names_are_refused():
    with pytest.raises(InputError, match="different judges of asr"):
        compare([system("a", records(3)), system("b", records(3), asr="other/1")])
    with pytest.raises(ConfigError, match="two or more systems of different names"):
        compare([system("a", records(3)), system("a", records(3))])


def test_three_systems_are_corrected_together_and_written(tmp_path):
    systems = [system("a", records(30))] + [
        system(name, records(30, lambda place: 1.0 + (place % 3 == 0))) for name in ("b", "c")
    ]
    found = compare(systems)
    assert all(row.p_holm >= row.p for row in found.rows)
    write_comparison(found, tmp_path)
    stored = json.loads((tmp_path / "compare.json").read_text())
    assert len(stored["rows"]) == len((tmp_path / "compare.csv").read_text().splitlines()) - 1 == 6
    table = "\n".join(comparison_table(found))
    assert "b against a" in table
    assert "c against a" in table
    assert "quality against compute" in table


def test_a_folder_without_an_evaluation_is_one_clear_line(tmp_path):
    with pytest.raises(InputError, match=r"no finished evaluation.*voxinstruct evaluate"):
        open_system(tmp_path)


def test_the_ablation_has_the_rows_of_table_6_and_differs_in_guidance_alone():
    systems = ablation()
    strengths = [
        (s.guidance.text_on_semantic, s.guidance.text_on_acoustic, s.guidance.semantic_on_acoustic) for s in systems
    ]
    assert strengths == [(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (1, 1, 0)]
    assert {each.voice for each in systems} == {None}


def test_experiments_that_compare_nothing_are_refused():
    one = Speaking(name="a", guidance=Guidance())
    for systems in ((one,), (one, one)):
        with pytest.raises(ConfigError, match="two or more of different names"):
            CompareExperiment(systems=systems, requests="requests.jsonl")
    with pytest.raises(ConfigError, match="names a folder"):
        Speaking(name="../a")
