import dataclasses
from collections import Counter

import numpy as np
import pytest

from voxinstruct_jax.config import ConfigError, InputError, from_dict, to_dict
from voxinstruct_jax.data.batches import BatchConfig, TokenBatches
from voxinstruct_jax.data.mixture import SHARE_UNIT, Corpus, Kinds, Mixture, Stream, draw, draw_variants, make_streams
from voxinstruct_jax.data.prepare import prepare


def stream(size, share, **fields):
    settings = {"corpus": 0, "kind": "", "language": "", "members": None, **fields}
    return Stream(size=size, share=round(share * SHARE_UNIT), **settings)


def drawn(streams, blocks, clips, seed=(0,)):
    found = [draw(streams, block=block, clips=clips, seed=seed) for block in blocks]
    return np.concatenate([each.streams for each in found]), np.concatenate([each.records for each in found])


def test_shares_are_exact_at_every_moment_not_only_in_the_mean():
    streams = [stream(50, 0.7), stream(1000, 0.2), stream(7, 0.1)]
    which, _ = drawn(streams, range(10), 100)
    for share, number in ((0.7, 0), (0.2, 1), (0.1, 2)):
        counts = np.cumsum(which == number)
        places = np.arange(1, len(which) + 1)
        assert np.abs(counts[99::100] - share * places[99::100]).max() <= 1
        assert np.abs(counts - share * places).max() < 12  # also between the ends of blocks


def test_every_clip_of_a_stream_comes_once_before_any_comes_again():
    """Corpora of different sizes come round at their own pace."""
    streams = [stream(50, 0.5), stream(130, 0.5)]
    which, records = drawn(streams, range(40), 37)
    for number, size in enumerate((50, 130)):
        mine = records[which == number]
        passes = [mine[start : start + size] for start in range(0, len(mine) - size, size)]
        assert len(passes) >= 5
        assert [Counter(p.tolist()).most_common(1)[0][1] for p in passes].count(1) >= len(passes) // 2
        counts = Counter(mine.tolist())
        assert max(counts.values()) - min(counts.get(r, 0) for r in range(size)) <= 1
        assert passes[0].tolist() != passes[1].tolist()


def test_places_in_an_order_are_all_alike():
    """No record is preferred anywhere: over seeds, the first clip drawn is uniform."""
    first = [draw([stream(5, 1.0)], block=0, clips=5, seed=(seed,)).records[0] for seed in range(60)]
    assert np.bincount(first, minlength=5) / 60 == pytest.approx([0.2] * 5, abs=0.18)


def test_a_draw_is_a_function_of_seed_and_block():
    streams = [stream(50, 0.5), stream(130, 0.5)]
    again = [draw(streams, block=9, clips=64, seed=(1,)) for _ in range(2)]
    np.testing.assert_array_equal(again[0].records, again[1].records)
    assert (draw(streams, block=9, clips=64, seed=(2,)).records != again[0].records).any()
    assert (draw(streams, block=8, clips=64, seed=(1,)).records != again[0].records).any()


def test_members_are_drawn_by_record():
    members = np.array([3, 8, 11], np.int32)
    _, records = drawn([stream(3, 1.0, members=members)], range(2), 3)
    assert sorted(records.tolist()) == [3, 3, 8, 8, 11, 11]


@pytest.fixture(scope="module")
def other_reader(tmp_path_factory, rows, encoders):
    """Eight clips, six of them English."""
    chosen = [row for row in rows if row.language == "en"][:6] + [row for row in rows if row.language == "zh"][:2]
    return prepare(chosen, tmp_path_factory.mktemp("other"), encoders, shard_size=8, progress=False)


def shares(readers, mixture):
    """Share of each (corpus, kind, language)."""
    return {(s.corpus, s.kind, s.language): s.share / SHARE_UNIT for s in make_streams(readers, mixture)}


def test_one_folder_alone_is_one_stream(reader):
    assert shares([reader], Mixture()) == {(0, "", ""): 1.0}


def test_corpora_without_weights_share_by_clips(reader, other_reader):
    mixture = Mixture(corpora=(Corpus(shards="a"), Corpus(shards="b")))
    assert shares([reader, other_reader], mixture) == pytest.approx({(0, "", ""): 30 / 38, (1, "", ""): 8 / 38})


def test_corpora_kinds_and_languages_all_get_what_was_asked(reader, other_reader):
    mixture = Mixture(
        corpora=(Corpus(shards="a", weight=1.0), Corpus(shards="b", weight=3.0)),
        kinds=Kinds(transcript=1.0, instruction=2.0, fine_grained=1.0),
        language_weights={"en": 2.0, "zh": 3.0},
    )
    found = shares([reader, other_reader], mixture)

    def total(place, value):
        return sum(share for key, share in found.items() if key[place] == value)

    assert [total(0, 0), total(0, 1)] == pytest.approx([0.25, 0.75])
    assert [total(1, kind) for kind in ("transcript", "instruction", "fine_grained")] == pytest.approx(
        [0.25, 0.5, 0.25]
    )
    assert [total(2, "en"), total(2, "zh")] == pytest.approx([0.4, 0.6])


@pytest.mark.parametrize(("temperature", "share"), [(1.0000001, 0.75), (2.0, 3**0.5 / (1 + 3**0.5)), (1e9, 0.5)])
def test_temperature_evens_languages_out(other_reader, temperature, share):
    found = shares([other_reader], Mixture(language_temperature=temperature))
    assert found[0, "", "en"] == pytest.approx(share, abs=1e-6)


def test_kinds_take_the_records_that_serve_them(reader):
    mixture = Mixture(kinds=Kinds(transcript=1.0, instruction=1.0, fine_grained=1.0))
    for each in make_streams([reader], mixture):
        members = range(len(reader)) if each.members is None else each.members.tolist()
        found = [reader[record] for record in members]
        described = [len(example.instructions) > 1 for example in found]
        stressed = [bool(example.attributes.get("stress")) for example in found]
        if each.kind == "transcript":
            assert len(found) == 30
        else:
            assert all(described)
            assert all(known == (each.kind == "fine_grained") for known in stressed)


def test_variants_follow_the_kind():
    random = np.random.default_rng(0)
    kinds = ["transcript", "instruction", "fine_grained", ""] * 5000
    variants = draw_variants(np.full(20_000, 4), kinds, random, description_free_ratio=0.1)
    assert set(variants[0::4].tolist()) == {3}
    for start in (1, 2):
        np.testing.assert_allclose(
            np.bincount(variants[start::4], minlength=4) / 5000, [1 / 3, 1 / 3, 1 / 3, 0], atol=0.03
        )
    np.testing.assert_allclose(np.bincount(variants[3::4], minlength=4) / 5000, [0.3, 0.3, 0.3, 0.1], atol=0.03)
    assert not draw_variants(np.ones(9, int), ["instruction"] * 9, random, description_free_ratio=0.0).any()


def test_batches_hold_the_shares(reader, other_reader, vocabulary, letters):
    """From the settings to what stands in the rows."""
    mixture = Mixture(
        corpora=(Corpus(shards="a", weight=1.0), Corpus(shards="b", weight=1.0)),
        kinds=Kinds(transcript=1.0, instruction=1.0),
        language_weights={"en": 1.0, "zh": 1.0},
    )
    config = BatchConfig(text_width=96, time_width=256, rows=4, seed=3, max_clips=8)
    batches = TokenBatches([reader, other_reader], letters(), vocabulary, config, mixture=mixture)
    chosen = [clip for step in range(60) for row in batches.chosen(step) for clip in row]
    assert np.mean([clip.corpus for clip in chosen]) == pytest.approx(0.5, abs=0.04)
    assert np.mean([clip.example.language == "en" for clip in chosen]) == pytest.approx(0.5, abs=0.04)
    quoted = [clip.variant == len(clip.example.instructions) - 1 for clip in chosen]
    assert np.mean(quoted) == pytest.approx(0.5, abs=0.04)
    assert sum(batches.planner.summary().shares.values()) == pytest.approx(1)
    weights = dataclasses.replace(mixture, corpora=(Corpus(shards="a", weight=1.0), Corpus(shards="b", weight=2.0)))
    moved = dataclasses.replace(
        mixture, corpora=(Corpus(shards="elsewhere/a", weight=1.0), Corpus(shards="b", weight=1.0))
    )
    others = [
        TokenBatches([reader, other_reader], letters(), vocabulary, config, mixture=each) for each in (weights, moved)
    ]
    assert [other.fingerprint == batches.fingerprint for other in others] == [False, True]


def test_corpora_of_different_codecs_are_refused(reader, tmp_path, rows, encoders, vocabulary, letters):
    other = dataclasses.replace(encoders, fingerprints={**encoders.fingerprints, "codec": "codec-2"})
    stranger = prepare(rows[:4], tmp_path / "stranger", other, progress=False)
    with pytest.raises(InputError, match="made by another codec than"):
        TokenBatches([reader, stranger], letters(), vocabulary, BatchConfig(text_width=96, time_width=256))


@pytest.mark.parametrize(
    ("mixture", "error", "message"),
    [
        ({"kinds": {"instruction": -1.0}}, ConfigError, "kinds.*instruction: -1.0 is below 0"),
        ({"language_temperature": 0.0}, ConfigError, "language_temperature: 0.0 must be above 0"),
        ({"corpora": [{"shards": "a", "weight": 0.0}]}, ConfigError, "corpus a: weight 0.0 must be above 0"),
        ({"corpora": [{"shards": "a", "weight": 1.0}, {"shards": "b"}]}, ConfigError, "all of them a weight, or none"),
        ({"language_weights": {"en": 1.0}}, InputError, "the data has zh too; give every language a weight"),
        (
            {"language_weights": {"en": 1.0, "zh": 1.0, "ja": 1.0}},
            InputError,
            "languages: ja has a weight, but no clip",
        ),
        ({"kind": {}}, ConfigError, "kind: unknown setting of Mixture; did you mean 'kinds'"),
    ],
)
def test_wrong_mixtures_say_what_is_wrong(reader, mixture, error, message):
    with pytest.raises(error, match=message):
        make_streams([reader], from_dict(Mixture, mixture))


def test_weights_that_exclude_each_other_are_refused(tmp_path, rows, encoders, reader):
    """One corpus is English alone and half of training, so Mandarin cannot be three quarters."""
    english = prepare([row for row in rows if row.language == "en"], tmp_path / "en", encoders, progress=False)
    mixture = Mixture(
        corpora=(Corpus(shards="a", weight=1.0), Corpus(shards="b", weight=1.0)),
        language_weights={"en": 1.0, "zh": 3.0},
    )
    with pytest.raises(ConfigError, match="exclude each other"):
        make_streams([reader, english], mixture)


def test_a_mixture_is_stored_and_read_back():
    mixture = Mixture(
        corpora=(Corpus(shards="a", weight=2.0),), kinds=Kinds(instruction=1.0), language_weights={"en": 1.0}
    )
    assert from_dict(Mixture, to_dict(mixture)) == mixture
