"""Sentences with numbers and names for generated corpora."""

import functools
import re

import pytest

from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.number_sentences import LANGUAGES, main, write_sentences

written = functools.cache(write_sentences)


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_are_words_alone_and_all_different(language):
    sentences = written(language, 60, seed=0)
    assert len(set(sentences)) == 60
    for sentence in sentences:
        assert not re.search(r"[0-9%$￥{}]", sentence), sentence
        assert sentence[-1] in ".?。？"


def test_more_sentences_begin_with_the_same_ones():
    assert write_sentences("en", 20, seed=0) == written("en", 60, seed=0)[:20]
    assert write_sentences("en", 20, seed=1) != written("en", 60, seed=0)[:20]


def test_lines_are_what_the_corpus_recipe_reads(capsys):
    assert main(["zh", "--count", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["zh"] * 3


def test_an_unknown_language_is_named():
    with pytest.raises(InputError, match="fr: no frames"):
        write_sentences("fr", 3, seed=0)
