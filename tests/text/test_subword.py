"""SentencePiece subwords by the rules of the release."""

import io

import pytest

from voxinstruct_jax.config import ConfigError, InputError
from voxinstruct_jax.text.subword import SubwordRules, SubwordTokenizer
from voxinstruct_jax.text.tokenizer import TextTokenizer

sentencepiece = pytest.importorskip("sentencepiece")
SENTENCES = [
    "A cheerful girl says quickly: we won!",
    "In a low, tired voice an old man says slowly: not again.",
    "Read the NASA report aloud, please.",
    "她轻声说今天天气很好。",
]
SIZES = {"vocab_size": 90, "hard_vocab_limit": False, "minloglevel": 9}


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """A small model with the ids of T5."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        **SIZES,
    )
    path = tmp_path_factory.mktemp("subword") / "spiece.model"
    path.write_bytes(model.getvalue())
    return path


def test_texts_become_pieces_and_the_end(model_file):
    tokenizer = SubwordTokenizer(model_file)
    assert isinstance(tokenizer, TextTokenizer)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model_file))
    for text in SENTENCES:
        rows = tokenizer.encode(f"  {text}\n")
        assert rows[:, 0].tolist() == [*processor.encode(text), 1]
        assert processor.decode(rows[:-1, 0].tolist()) == text
    assert tokenizer.encode("").tolist() == [[1]]


def test_the_release_lowers_all_but_the_first_character_and_fills_its_slots(model_file):
    tokenizer = SubwordTokenizer(model_file, SubwordRules.release(40))
    rows = tokenizer.encode(" read the NASA report Aloud ")
    plain = SubwordTokenizer(model_file).encode("Read the nasa report aloud")
    assert rows.shape == (40, 1)
    assert rows[: len(plain)].tolist() == plain.tolist()
    assert not rows[len(plain) :].any()
    assert len(SubwordTokenizer(model_file, SubwordRules.release()).encode("x")) == 512


@pytest.mark.parametrize("fill", [False, True])
def test_long_texts_are_cut_and_end_with_the_end(model_file, fill):
    tokenizer = SubwordTokenizer(model_file, SubwordRules(max_tokens=9, fill=fill))
    whole = SubwordTokenizer(model_file).encode(SENTENCES[0])
    cut = tokenizer.encode(SENTENCES[0])
    assert cut[:8].tolist() == whole[:8].tolist()
    assert cut[8:].tolist() == [[1]]


def test_the_fingerprint_follows_the_rules_and_the_file(model_file):
    pieces = SubwordTokenizer(model_file).channel_sizes[0]
    makes = [
        SubwordTokenizer(model_file),
        SubwordTokenizer(model_file, SubwordRules.release()),
        SubwordTokenizer(model_file, vocabulary_size=100),
    ]
    assert len({tokenizer.fingerprint for tokenizer in makes}) == 3
    assert makes[0].fingerprint == SubwordTokenizer(model_file).fingerprint
    assert [tokenizer.channel_sizes for tokenizer in makes] == [(pieces,), (pieces,), (100,)]


def test_what_is_no_model_of_t5_is_refused(model_file, tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no SentencePiece model here"):
        SubwordTokenizer(tmp_path / "nowhere")
    (tmp_path / "text").write_text("no model")
    with pytest.raises(InputError, match="text: not a SentencePiece model"):
        SubwordTokenizer(tmp_path / "text")
    with pytest.raises(InputError, match=r"has \d+ pieces, but the embedding has 20 rows"):
        SubwordTokenizer(model_file, vocabulary_size=20)
    other = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(SENTENCES), model_writer=other, **SIZES)
    (tmp_path / "other").write_bytes(other.getvalue())
    with pytest.raises(InputError, match="padding at id 0 and the end at id 1"):
        SubwordTokenizer(tmp_path / "other")
    with pytest.raises(ConfigError, match="max_tokens"):
        SubwordRules(max_tokens=1)
