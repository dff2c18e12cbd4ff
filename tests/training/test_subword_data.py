"""Training on texts cut by a subword model that a user brings, as the paper's system does."""

import dataclasses
import io
import shutil

import jax
import numpy as np
import pytest

from voxinstruct_jax.checkpoints.weights import save_weights
from voxinstruct_jax.cli.main import main
from voxinstruct_jax.config import InputError
from voxinstruct_jax.data.shards import ShardReader
from voxinstruct_jax.text.encoder import TextEncoderConfig
from voxinstruct_jax.text.subword import SubwordTokenizer
from voxinstruct_jax.training.ar import ar_task
from voxinstruct_jax.training.loop import train

sentencepiece = pytest.importorskip("sentencepiece")
ROWS = 120
"""Of the embedding: more than there are pieces, as with mT5."""


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    """A small model with the ids of T5."""
    model = io.BytesIO()
    words = "one two three four five six seven eight"
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f'"{words}"', f"“{words}”"]),
        model_writer=model,
        character_coverage=1.0,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=9,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
    )
    path = tmp_path_factory.mktemp("subword") / "spiece.model"
    path.write_bytes(model.getvalue())
    return path


@pytest.fixture(scope="module")
def experiment(tiny_ar_experiment, model_file, tmp_path_factory):
    """The tiny AR model with an encoder of one channel, frozen but for adapters; shards not recounted yet."""
    shards = tmp_path_factory.mktemp("subword") / "shards"
    shutil.copytree(tiny_ar_experiment.data.shards, shards)
    model = tiny_ar_experiment.model
    encoder = dataclasses.replace(model.text_encoder, channel_sizes=(ROWS,), lora_rank=2)
    return dataclasses.replace(
        tiny_ar_experiment,
        model=dataclasses.replace(model, text_encoder=encoder),
        data=dataclasses.replace(tiny_ar_experiment.data, shards=str(shards), tokenizer=str(model_file)),
        train=dataclasses.replace(tiny_ar_experiment.train, steps=1),
    )


def test_shards_are_recounted_and_batches_hold_subwords(experiment, model_file, capsys):
    with pytest.raises(InputError, match="another tokenizer; count it anew"):
        ar_task(experiment)
    assert main(["prepare", experiment.data.shards, "--recount", "--tokenizer", str(model_file)]) == 0
    assert "text of 8 clips counted anew" in capsys.readouterr().out
    batch = ar_task(experiment).batches[0]
    tokenizer, reader = SubwordTokenizer(model_file), ShardReader(experiment.data.shards)
    known = {tuple(tokenizer.encode(text)[:, 0].tolist()) for n in range(8) for text in reader[n].instructions}
    ids = np.asarray(batch.text_tokens)[..., 0]
    for row, segments in zip(ids, np.asarray(batch.text_segment_ids), strict=True):
        for clip in range(1, segments.max() + 1):
            assert tuple(row[segments == clip].tolist()) in known


def test_the_frozen_encoder_comes_from_converted_weights_and_the_rest_is_trained(experiment, tmp_path):
    from flax import nnx

    from voxinstruct_jax.text.encoder import TextEncoder

    config: TextEncoderConfig = dataclasses.replace(experiment.model.text_encoder, lora_rank=0)
    weights = nnx.to_pure_dict(nnx.state(TextEncoder(config, rngs=nnx.Rngs(7))))
    save_weights(tmp_path / "mt5", weights, {"kind": "mt5"}, card="# Random")
    started = dataclasses.replace(
        experiment, train=dataclasses.replace(experiment.train, init_from=str(tmp_path / "mt5"))
    )
    result = train(ar_task(started), started, tmp_path / "run", report=lambda *_: None)
    frozen = result.state.rest["text"]["encoder"]
    same = jax.tree.map(lambda kept, given: np.array_equal(kept, given), frozen, _only(weights, frozen))
    assert all(jax.tree.leaves(same))
    assert len(jax.tree.leaves(frozen)) == len(jax.tree.leaves(weights))


def test_an_encoder_of_other_channels_is_refused(experiment):
    without = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, tokenizer=""))
    with pytest.raises(InputError, match=r"reads channels of \(120,\) ids, .*; for mT5 give --data.tokenizer"):
        ar_task(without)


def _only(weights, like):
    return {key: _only(weights[key], value) if isinstance(value, dict) else weights[key] for key, value in like.items()}
