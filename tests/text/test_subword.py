"""SentencePiece subwords by the rules of the release."""

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    assert makes[0].fingerprint != makes[1].fingerprint
    assert makes[0].fingerprint == makes[2].fingerprint  # the ids are the same, however many rows the embedding has
    assert makes[0].fingerprint == SubwordTokenizer(model_file).fingerprint
    assert [tokenizer.channel_sizes for tokenizer in makes] == [(pieces,), (pieces,), (100,)]


def test_what_is_no_model_of_t5_is_refused(model_file, tmp_path):
    with pytest.raises(InputError, match=r"nowhere: no tokenizer here; it is the file spiece.model or tokenizer.json"):
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


AWKWARD = [
    "",
    "A\u200b zero-width\u200b\u200b end\u200b",
    "full\u3000width　ＡＢＣ１２３！ ½ ﬁne ①",
    "她说：“Let's go，马上！” 然后 laughed … 哈哈",
    "two  spaces \t tab\nline",
    "</s> <pad> <unk> stay text </s>",
    "▁ the space sign ▁",
    "unknown: \U0001f600 ж ☃ ж☃",
    "e\u0301 and é",
    "NASA, 3.14 % & €5",
]


def train(folder, *, byte_fallback):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3 + ["说 出 来 then stop", "天气 and weather"]),
        model_writer=model,
        character_coverage=1.0,
        byte_fallback=byte_fallback,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        **{**SIZES, "vocab_size": 400},
    )
    (folder / "spiece.model").write_bytes(model.getvalue())


def write_tokenizer_json(folder):
    """What transformers makes of a model of T5."""
    tokenizers = pytest.importorskip("tokenizers")
    pb2 = pytest.importorskip("sentencepiece.sentencepiece_model_pb2")
    proto = pb2.ModelProto.FromString((folder / "spiece.model").read_bytes())
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    fallback = proto.trainer_spec.byte_fallback
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2, byte_fallback=fallback))
    tokenizer.normalizer = tokenizers.normalizers.Sequence(
        [
            tokenizers.normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            tokenizers.normalizers.Replace(tokenizers.Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single=["$A", "</s>"], pair=["$A", "</s>", "$B", "</s>"], special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module", params=[False, True], ids=["unknown characters", "bytes"])
def both(request, tmp_path_factory):
    """One model as either file."""
    folder = tmp_path_factory.mktemp("mt5")
    train(folder, byte_fallback=request.param)
    write_tokenizer_json(folder)
    return SubwordTokenizer(folder / "spiece.model"), SubwordTokenizer(folder / "tokenizer.json")


@pytest.mark.parametrize("text", [*SENTENCES, *AWKWARD])
def test_tokenizer_json_gives_the_pieces_of_sentencepiece(both, text):
    """Whatever length, padding or special tokens the file asks for."""
    plain, fast = both
    np.testing.assert_array_equal(fast.encode(text), plain.encode(text))
    assert fast.channel_sizes == plain.channel_sizes


@given(st.text(st.sampled_from("abegilnorst她说天气马上ＡB1½“”，。,.!?'  \u3000\u200bж"), max_size=30))
@settings(max_examples=100)
def test_tokenizer_json_agrees_on_any_mixture(both, text):
    plain, fast = both
    assert fast.encode(text).tolist() == plain.encode(text).tolist()


def test_a_folder_serves_and_prefers_the_original(tmp_path):
    train(tmp_path, byte_fallback=False)
    write_tokenizer_json(tmp_path)
    plain = SubwordTokenizer(tmp_path / "spiece.model")
    assert SubwordTokenizer(tmp_path).fingerprint == plain.fingerprint
    (tmp_path / "spiece.model").unlink()
    assert SubwordTokenizer(tmp_path).fingerprint != plain.fingerprint
    assert SubwordTokenizer(tmp_path).encode("we won").tolist() == plain.encode("we won").tolist()


def test_what_is_no_tokenizer_json_of_mt5_is_refused(tmp_path):
    train(tmp_path, byte_fallback=False)
    write_tokenizer_json(tmp_path)
    file = tmp_path / "tokenizer.json"
    whole = json.loads(file.read_text())

    def check(content, message):
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(InputError, match=rf"tokenizer\.json: {message}") as refusal:
            SubwordTokenizer(file)
        assert "\n" not in str(refusal.value)

    check('{"model":', r"not a tokenizer\.json")
    check("{}", r"not a tokenizer\.json \('model'\)")
    check({**whole, "model": {"type": "Nothing"}}, r"not a tokenizer\.json")
    check({**whole, "model": {**whole["model"], "vocab": [["a", "b"]]}}, r"not a tokenizer\.json")
    check({**whole, "model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}, "a tokenizer of kind BPE")
    moved = [["x", 0.0], *whole["model"]["vocab"]]
    check({**whole, "model": {**whole["model"], "vocab": moved, "unk_id": 3}, "added_tokens": []}, "not a model of T5")
    rule = whole["normalizer"]["normalizers"][0]
    for damaged in ("AAAA", "no base64!", rule["precompiled_charsmap"][:400]):
        spoilt = [{**rule, "precompiled_charsmap": damaged}, *whole["normalizer"]["normalizers"][1:]]
        content = {**whole, "normalizer": {**whole["normalizer"], "normalizers": spoilt}}
        check(content, r"not a tokenizer\.json")
