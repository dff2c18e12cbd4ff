"""Settings of all tests (JAX on CPU with a kept compile cache, reproducible property tests) and shared fixtures."""

import json
import os
from importlib import metadata
from pathlib import Path

import hypothesis
import jaxtyping
import numpy as np
import pytest

PACKAGE = Path(__file__).parents[1] / "voxinstruct_jax"

# JAX reads these when it is imported, which is later; subprocesses of the tests inherit them. All share one cache: of
# an entry that another process is still writing a part would be read, whose decompression fails, and JAX compiles.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".cache" / "jax" / "shared"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# Tiny programs take far longer to compile than to run: without these the tests take three times as long.
COMPILE_FAST = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if metadata.version("jaxlib").startswith("0.10."):  # a version that does not know a flag ends the process
    COMPILE_FAST += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *COMPILE_FAST]).strip()


def modules_with_arrays() -> list[str]:
    """Names of the modules that write down shapes."""
    paths = (path for path in PACKAGE.rglob("*.py") if "from jaxtyping import" in path.read_text("utf-8"))
    return [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in paths]


# Shapes are checked in every call. Modules without any are left to basedpyright: those that read text or write
# sentences take several times as long where plain types are looked at as well.
jaxtyping.install_import_hook(modules_with_arrays(), "beartype.beartype")

# The first example of each shape compiles: no deadline fits, and a few examples must do.
hypothesis.settings.register_profile(
    "vox",
    deadline=None,
    derandomize=True,
    max_examples=20,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("vox")


def pytest_collection_modifyitems(items):
    """Files with slow tests first: with several workers none is left with a long one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session", autouse=True)
def _grain_leaves_batches_alone():
    """Grain measures a batch by mapping its arrays to None, of which run-time checks let no `PackedBatch` be made."""
    from grain._src.core import tree_lib

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_lib, "estimate_byte_size", lambda structure: 0)
        yield


NUM_UNITS = 12


@pytest.fixture(scope="session")
def tiny_voice_folder(tmp_path_factory):
    """A whole voice folder of tiny models with random weights: real code, real files, meaningless sound. Read only."""
    return write_tiny_voice(tmp_path_factory.mktemp("voices") / "tiny", "sequence")


def write_tiny_voice(folder, timing, **changes):
    """Writes a voice of tiny models with this timing and these settings of both."""
    import dataclasses

    from voxinstruct_jax.audio.codec import CodecConfig, MelCodec
    from voxinstruct_jax.checkpoints.weights import save_weights
    from voxinstruct_jax.config import to_dict
    from voxinstruct_jax.models.ar import ARConfig, ARModel
    from voxinstruct_jax.models.nar import NARConfig, NARModel
    from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
    from voxinstruct_jax.vocabulary import Vocabulary
    from voxinstruct_jax.voice_folder import VoiceConfig

    codec, tokenizer = CodecConfig.tiny(), PronunciationTokenizer()
    sizes = {
        "vocabulary": Vocabulary(
            num_semantic=NUM_UNITS, codebook_size=codec.codebook_size, num_codebooks=codec.num_codebooks
        ),
        "channel_sizes": tokenizer.channel_sizes,
    }
    write_random_part(folder / "codec", "codec", codec, MelCodec)
    for kind, config, model_class in (("ar", ARConfig, ARModel), ("nar", NARConfig, NARModel)):
        model = dataclasses.replace(config.tiny(**sizes), timing=timing, **changes)
        write_random_part(folder / kind, kind, model, model_class)
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


@pytest.fixture(scope="session")
def tiny_aligned_voice(tmp_path_factory):
    """As `tiny_voice`, of aligned models."""
    from voxinstruct_jax.voice import load

    return load(write_tiny_voice(tmp_path_factory.mktemp("voices") / "aligned", "aligned"))


@pytest.fixture(scope="session")
def make_tiny_voice(tmp_path_factory):
    """Opens a tiny voice of a timing with these settings of both models."""
    from voxinstruct_jax.voice import load

    return lambda timing, **changes: load(
        write_tiny_voice(tmp_path_factory.mktemp("voices") / "made", timing, **changes)
    )


@pytest.fixture(scope="session")
def random_part():
    """`write_random_part`, for tests in other files."""
    return write_random_part


def write_random_part(folder, kind, config, model_class, **settings):
    """Saves a model as `convert` would; random numbers for weights are quicker than to initialise it."""
    import jax
    from flax import nnx

    from voxinstruct_jax.checkpoints.weights import save_weights
    from voxinstruct_jax.config import to_dict

    random = np.random.default_rng(0)
    abstract = nnx.to_pure_dict(nnx.state(nnx.eval_shape(lambda: model_class(config, rngs=nnx.Rngs(0)))))
    weights = jax.tree.map(lambda leaf: 0.2 * random.standard_normal(leaf.shape, np.float32), abstract)
    save_weights(
        folder, weights, {"kind": kind, "model": to_dict(config), **settings, "step": 0}, card=f"# Random {kind}\n"
    )


@pytest.fixture(scope="session")
def tiny_shards(tmp_path_factory):
    """Prepared tokens of eight synthetic clips in a language that a tiny model learns in seconds.

    Of clip n: unit k + 1 is unit k plus 3 (mod 8), from n; code t + 1 of the first codebook is code t plus 3 (mod 8),
    from n; codebook q follows from the first one as 3 times its code plus q (mod 8).
    """
    import soundfile

    from voxinstruct_jax.data.manifest import Row
    from voxinstruct_jax.data.prepare import Encoders, prepare
    from voxinstruct_jax.text.tokenizer import PronunciationTokenizer

    sample_rate, hop_length, folder = 1000, 40, tmp_path_factory.mktemp("tokens")

    def number_of(samples):
        return round(float(samples[0]) * 16) - 1  # a clip's level is its number

    def frames_of(samples):
        return np.arange(-(-len(samples) // hop_length))

    def acoustic(samples):
        first = (number_of(samples) + 3 * frames_of(samples)) % 8
        return np.stack([first, (3 * first + 1) % 8, (3 * first + 2) % 8])

    rows = []
    for number, word in enumerate(("one", "two", "three", "four", "five", "six", "seven", "eight")):
        path = folder / f"{number}.wav"
        level = np.full((6 + number % 3) * hop_length, (number + 1) / 16, np.float32)
        soundfile.write(path, level, sample_rate, subtype="FLOAT")
        rows.append(Row(id=word, audio=str(path), language=("en", "zh")[number % 2], transcript=word))
    encoders = Encoders(
        acoustic=acoustic,
        semantic=lambda samples: (number_of(samples) + 3 * (frames_of(samples) // 2)) % 8,
        tokenizer=PronunciationTokenizer(),
        sample_rate=sample_rate,
        frame_rate=sample_rate / hop_length,
        fingerprints={"codec": "synthetic", "units": "synthetic"},
    )
    prepare(rows, folder / "shards", encoders, progress=False)
    return folder / "shards"


@pytest.fixture(scope="session")
def google_bucket():
    """A bucket of a server on loopback that speaks Google's protocol; its URL."""
    pytest.importorskip("gcsfs", reason="needs the cloud extra")
    pytest.importorskip("gcp_storage_emulator", reason="needs gcp-storage-emulator")
    import contextlib
    import http
    import socket

    from gcp_storage_emulator.exceptions import NotFound
    from gcp_storage_emulator.handlers import objects
    from gcp_storage_emulator.server import create_server

    put = objects._multipart_upload

    def put_if_asked(request, response, storage):
        """Google keeps to `ifGenerationMatch=0`, only what is not there yet is made; the emulator leaves it out."""
        if request.query.get("ifGenerationMatch") == ["0"]:
            with contextlib.suppress(NotFound):
                storage.get_file_obj(request.params["bucket_name"], request.data["meta"]["name"])
                response.status = http.HTTPStatus.PRECONDITION_FAILED
                return
        put(request, response, storage)

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objects, "_multipart_upload", put_if_asked)
        patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        with create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket"):
            yield "gs://bucket"


class ToneSpectrum:
    """Features of sounds that are tones: log spectra of 20 ms at 50 Hz."""

    name = "tones-layer3"
    frame_rate = 50.0

    def features(self, samples):
        frames = -(-len(samples) // 320)
        pieces = np.pad(samples, (0, frames * 320 - len(samples))).reshape(frames, 320)
        return np.log(np.abs(np.fft.rfft(pieces * np.hanning(320))) + 0.1).astype(np.float32)

    def features_of(self, clips, batch_size):
        return [self.features(clip) for clip in clips]


@pytest.fixture(scope="session")
def tone_speech(tmp_path_factory):
    """Forty clips in which each phone is a tone of its own and silence is noise; pauses are sometimes left out.

    `rows` and their `manifest`; `source` of features; of each clip its `samples` (16 kHz), `durations` of the
    characters (half frames, with both quotes), and `phones`: the base label of each 20 ms.
    """
    from types import SimpleNamespace

    import soundfile

    from voxinstruct_jax.data.manifest import Row, write_manifest
    from voxinstruct_jax.text.tokenizer import PronunciationTokenizer

    random, tokenizer, folder = np.random.default_rng(0), PronunciationTokenizer(), tmp_path_factory.mktemp("tones")
    words = ("see", "two", "me", "tea", "moo", "妈", "拿")
    hertz: dict[str, float] = {}
    found = SimpleNamespace(rows=[], samples=[], durations=[], phones=[], source=ToneSpectrum())
    for number in range(40):
        transcript = " ".join(random.choice(words, random.integers(2, 5)))
        phones = tokenizer.spoken_phones(f'"{transcript}"')
        counts = [int(random.integers(3, 8)) * int(not phone.optional or random.random() < 0.6) for phone in phones]
        durations = np.zeros(phones[-1].row - phones[0].row + 1, int)
        pieces, labels = [], []
        for phone, count in zip(phones, counts, strict=True):
            durations[phone.row - phones[0].row] += count
            labels += [phone.base_label] * count
            level = 0.0 if phone.optional else 0.3
            tone = hertz.setdefault(phone.base_label, 300.0 + 450.0 * len(hertz))
            pieces.append(level * np.sin(2 * np.pi * tone / 16_000 * np.arange(320 * count)))
        samples = np.concatenate(pieces) + 0.003 * random.standard_normal(320 * sum(counts))
        soundfile.write(folder / f"{number}.wav", samples, 16_000, subtype="FLOAT")
        language = "en" if number % 2 else "zh"
        row = Row(id=f"clip-{number}", audio=str(folder / f"{number}.wav"), language=language, transcript=transcript)
        found.rows.append(row)
        found.samples.append(samples.astype(np.float32))
        found.durations.append(durations)
        found.phones.append(np.array(labels))
    found.manifest = folder / "manifest.jsonl"
    write_manifest(found.manifest, found.rows)
    return found


@pytest.fixture(scope="session")
def tiny_ar_experiment(tiny_shards):
    """Trains a one-layer AR model on `tiny_shards`: eight rows of two clips a step."""
    import dataclasses

    from voxinstruct_jax.data.batches import BatchConfig
    from voxinstruct_jax.models.ar import ARConfig
    from voxinstruct_jax.text.tokenizer import PronunciationTokenizer
    from voxinstruct_jax.training.ar import ARExperiment
    from voxinstruct_jax.training.language_model import TokenData
    from voxinstruct_jax.training.optimizer import OptimizerConfig
    from voxinstruct_jax.training.task import TrainConfig
    from voxinstruct_jax.vocabulary import Vocabulary

    model = ARConfig.tiny(
        vocabulary=Vocabulary(num_semantic=8, codebook_size=8, num_codebooks=3),
        channel_sizes=PronunciationTokenizer().channel_sizes,
    )
    return ARExperiment(
        model=dataclasses.replace(
            model,
            backbone=dataclasses.replace(model.backbone, num_layers=1),
            text_encoder=dataclasses.replace(model.text_encoder, num_layers=1),
        ),
        data=TokenData(shards=str(tiny_shards), batch=BatchConfig(text_width=40, time_width=64, rows=8)),
        optimizer=OptimizerConfig(peak_lr=1e-2, warmup_steps=10, decay="cosine", decay_steps=120, weight_decay=0.0),
        train=TrainConfig(steps=100, log_every=1, save_every=40),
    )


@pytest.fixture(scope="session")
def tiny_ar_run(tiny_ar_experiment, tmp_path_factory):
    """`tiny_ar_experiment`, trained: its `folder` and the loop's `result`. Read only."""
    from types import SimpleNamespace

    from voxinstruct_jax.training.ar import ar_task
    from voxinstruct_jax.training.loop import train

    folder = tmp_path_factory.mktemp("runs") / "ar"
    result = train(ar_task(tiny_ar_experiment), tiny_ar_experiment, folder, report=lambda *_: None)
    return SimpleNamespace(folder=folder, result=result)
