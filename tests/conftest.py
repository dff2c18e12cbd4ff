"""Settings of all tests (JAX on CPU with a kept compile cache, reproducible property tests) and shared fixtures."""

import json
import os
from pathlib import Path

import hypothesis
import numpy as np
import pytest

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")
"""Parallel workers keep caches of their own: JAX's is not safe to write from several processes."""

# JAX reads these when it is imported, which is later; subprocesses of the tests inherit them.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax" / WORKER))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# The first example of each shape compiles: no deadline fits, and a few examples must do.
hypothesis.settings.register_profile(
    "vox",
    deadline=None,
    derandomize=True,
    max_examples=20,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("vox")

NUM_UNITS = 12


@pytest.fixture(scope="session")
def tiny_voice_folder(tmp_path_factory):
    """A whole voice folder of tiny models with random weights: real code, real files, meaningless sound. Read only."""
    from voxinstruct_jax.audio.codec import CodecConfig, MelCodec
    from voxinstruct_jax.checkpoints.weights import save_weights
    from voxinstruct_jax.config import to_dict
    from voxinstruct_jax.models.ar import ARConfig, ARModel
    from voxinstruct_jax.models.nar import NARConfig, NARModel
    from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
    from voxinstruct_jax.vocabulary import Vocabulary
    from voxinstruct_jax.voice import VoiceConfig

    folder = tmp_path_factory.mktemp("voices") / "tiny"
    codec, tokenizer = CodecConfig.tiny(), PronunciationTokenizer()
    sizes = {
        "vocabulary": Vocabulary(
            num_semantic=NUM_UNITS, codebook_size=codec.codebook_size, num_codebooks=codec.num_codebooks
        ),
        "channel_sizes": tokenizer.channel_sizes,
    }
    write_random_part(folder / "codec", "codec", codec, MelCodec)
    write_random_part(folder / "ar", "ar", ARConfig.tiny(**sizes), ARModel)
    write_random_part(folder / "nar", "nar", NARConfig.tiny(**sizes), NARModel)
    centroids = np.random.default_rng(0).standard_normal((NUM_UNITS, 384), np.float32)
    save_weights(folder / "units", {"centroids": centroids}, {"kind": "units", "source": "none"}, card="# Random\n")
    settings = VoiceConfig(num_steps=(1,) * (codec.num_codebooks - 1), text_fingerprint=tokenizer.fingerprint)
    (folder / "voice.json").write_text(json.dumps(to_dict(settings)))
    return folder


@pytest.fixture(scope="session")
def tiny_voice(tiny_voice_folder):
    """The voice of `tiny_voice_folder`, opened."""
    from voxinstruct_jax.voice import load

    return load(tiny_voice_folder)


def write_random_part(folder, kind, config, model_class):
    """Saves a model as `convert` would; random numbers for weights are quicker than to initialise it."""
    import jax
    from flax import nnx

    from voxinstruct_jax.checkpoints.weights import save_weights
    from voxinstruct_jax.config import to_dict

    random = np.random.default_rng(0)
    abstract = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: model_class(config, rngs=nnx.Rngs(0)))))
    weights = jax.tree.map(lambda leaf: 0.2 * random.standard_normal(leaf.shape, np.float32), abstract)
    save_weights(folder, weights, {"kind": kind, "model": to_dict(config), "step": 0}, card=f"# Random {kind}\n")
