"""Folders of voices: settings, models and units, read and written.

A voice folder holds `codec/`, `units/`, `ar/`, `nar/`, each with its weights and settings, and `voice.json` with the
defaults of decoding. One converted from the paper's release also has `text/` and `hubert/`. Read `load_part`.
"""

import dataclasses
import functools
import json
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float32, Int32, Num

from voxinstruct_jax.audio import codecs
from voxinstruct_jax.audio.codecs import Codec, codec_classes
from voxinstruct_jax.audio.harmonics import Intonation
from voxinstruct_jax.audio.hubert import Hubert, HubertConfig, HubertFeatures
from voxinstruct_jax.audio.linguistic import NUM_FEATURES
from voxinstruct_jax.audio.semantic import FeatureSource, SemanticUnits, load_units
from voxinstruct_jax.audio.waveform import check_samples
from voxinstruct_jax.audio.whisper import load_whisper_encoder
from voxinstruct_jax.checkpoints.weights import load_weights, read_settings
from voxinstruct_jax.config import ConfigError, InputError, from_dict, to_dict
from voxinstruct_jax.decoding.prosody import Prosody, StressLift
from voxinstruct_jax.decoding.rules import DecodingRules
from voxinstruct_jax.decoding.sampling import SamplingConfig
from voxinstruct_jax.decoding.stages import (
    UNKNOWN,
    Loaded,
    decode_codes,
    stack_codes,
    stack_features,
    stack_intonations,
)
from voxinstruct_jax.guidance import Guidance
from voxinstruct_jax.judges.bins import load_bins
from voxinstruct_jax.layers.dense import cast_kernels, put_outputs_first
from voxinstruct_jax.models.ar import ARConfig, ARModel
from voxinstruct_jax.models.llama import ComputeType
from voxinstruct_jax.models.nar import NARConfig, NARModel
from voxinstruct_jax.text.subword import SubwordRules, SubwordTokenizer
from voxinstruct_jax.text.tokenizer import PronunciationTokenizer, TextTokenizer

__all__ = [
    "Loaded",
    "VoiceConfig",
    "codes_fingerprint",
    "decode_clip",
    "embedded_release",
    "encode_clip",
    "encode_clips",
    "identify",
    "load_codec",
    "load_part",
    "network_in",
    "open_ar",
    "open_nar",
    "open_tokenizer",
    "open_units",
    "read_prosody",
    "read_voice_settings",
    "write_voice_settings",
]

SETTINGS = "voice.json"
BINS = "bins.json"
T = TypeVar("T")
TEXT_WIDTHS = (64, 128, 256, 512)
"""Text slots of the compiled programs; a request takes the narrowest that holds it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VoiceConfig:
    """Defaults of decoding, tuned on development sentences and stored with the weights (`voice.json`)."""

    guidance: Guidance = Guidance()
    sampling: SamplingConfig = SamplingConfig()
    num_steps: tuple[int, ...] = (8, 4, 2, 1, 1, 1, 1)
    """MaskGIT passes of each codebook from the second on."""
    min_s_per_syllable: float = 0.07
    max_s_per_syllable: float = 0.6
    margin_s: float = 1.0
    """Added to the longest duration: quiet at both ends."""
    text_fingerprint: str = ""
    """Of the text tokenizer that the models were trained with, where it comes with this package."""
    text_slots: int = 0
    """Slots that every text fills, as in the release; 0 = as many as it has tokens."""
    max_tokens: int = 0
    """Longest sequence from BOS to EOS2 that the models know; 0 = no limit but that of the duration."""
    rules: DecodingRules = DecodingRules()
    """Where the release is followed in its faults."""
    stress: StressLift = StressLift()

    def __post_init__(self) -> None:
        if not 0 < self.min_s_per_syllable < self.max_s_per_syllable:
            raise ConfigError("min_s_per_syllable must be above 0 and below max_s_per_syllable")


def embedded_release() -> Path:
    """Folder of the voice that comes with the package."""
    return Path(__file__).parent / "release"


def read_voice_settings(folder: Path) -> tuple[str, dict[str, Any]]:
    """Returns the kind of voice that a folder holds (empty = a codec language model's), and its other settings.

    Raises:
        InputError: There is no voice in the folder.
    """
    settings = folder / SETTINGS
    if not settings.is_file():
        raise InputError(f"{folder}: no voice here (it has no {SETTINGS})")
    values = json.loads(settings.read_text())
    return str(values.pop("kind", "")), values


def write_voice_settings(folder: Path, kind: str, config: Any) -> None:
    """Writes the `voice.json` of a kind of voice, which makes a folder a voice: the last thing to be written."""
    partial = folder / f".{SETTINGS}.partial"
    partial.write_text(json.dumps({"kind": kind, **to_dict(config)}, indent=1) + "\n")
    partial.replace(folder / SETTINGS)


def read_prosody(folder: Path, config: VoiceConfig) -> Prosody:
    """What a voice keeps to; without boundaries in its folder, to no class.

    Raises:
        InputError: The boundaries are damaged.
    """
    path = folder / BINS
    return Prosody(bins=load_bins(path) if path.is_file() else None, stress=config.stress)


def load_part(
    folder: Path, config_class: type, model_class: Callable[..., T], shared: dict[Path, Any] | None = None
) -> Loaded[T]:
    """Loads one model of a voice folder, or of any folder that `checkpoints.save_weights` wrote.

    `shared` takes up what other models share, too (`checkpoints.weights.load_weights`).

    Raises:
        InputError: The folder is damaged, or holds weights that the model has no place for.
    """
    settings, arrays = load_weights(folder, shared)
    config = from_dict(config_class, settings["model"])
    graph, abstract = nnx.split(nnx.eval_shape(lambda: model_class(config, rngs=nnx.Rngs(0))))
    try:
        nnx.replace_by_pure_dict(abstract, arrays)
    except ValueError as error:
        raise InputError(f"{folder}: weights of another model or release ({error}); convert its run again") from error
    return Loaded(graph, abstract, config)


def open_ar(folder: Path, dtype: ComputeType | None = None, shared: dict[Path, Any] | None = None) -> Loaded[ARModel]:
    """Loads the AR model of a voice folder; `dtype` as in `load`, `shared` as in `load_part`."""
    return _laid_out(_in_precision(load_part(folder / "ar", ARConfig, ARModel, shared), ARModel, dtype))


def open_nar(folder: Path, dtype: ComputeType | None = None, shared: dict[Path, Any] | None = None) -> Loaded[NARModel]:
    """As `open_ar`, the NAR model."""
    return _laid_out(_in_precision(load_part(folder / "nar", NARConfig, NARModel, shared), NARModel, dtype))


def network_in(part: Loaded[T], model_class: Callable[..., T], dtype: ComputeType | None) -> Loaded[T]:
    """Returns the same weights in a model whose network computes in `dtype`; None = as it was made."""
    if dtype is None:
        return part
    inner = getattr(part.config, "network", None)
    changed = {"dtype": dtype} if inner is None else {"network": dataclasses.replace(inner, dtype=dtype)}
    config = dataclasses.replace(part.config, **changed)
    graph = nnx.graphdef(nnx.eval_shape(lambda: model_class(config, rngs=nnx.Rngs(0))))
    return Loaded(graph, part.state, config)


def _in_precision(part: Loaded[T], model_class: Callable[..., T], dtype: ComputeType | None) -> Loaded[T]:
    """As `network_in`, linear maps kept in it too."""
    if dtype is None or dtype == part.config.dtype:
        return part
    changed = network_in(part, model_class, dtype)
    model = nnx.merge(changed.graph, changed.state)
    cast_kernels(model, dtype)
    return Loaded(*nnx.split(model), changed.config)


def _laid_out(part: Loaded[T]) -> Loaded[T]:
    """On a CPU, the kernels of an AR or NAR model's blocks as it reads them best."""
    if jax.default_backend() != "cpu":
        return part
    model: Any = nnx.merge(part.graph, part.state)
    put_outputs_first(model.backbone)
    return Loaded(*nnx.split(model), part.config)


def load_codec(folder: Path) -> Loaded[Codec]:
    """Loads the codec of a voice folder, of whichever kind it is."""
    return load_part(folder, *codec_classes(str(read_settings(folder).get("kind"))))


def codes_fingerprint(codec: Loaded[Codec]) -> str:
    """`audio.codecs.codes_fingerprint` of a loaded codec."""
    return codecs.codes_fingerprint(codec.config, nnx.to_pure_dict(codec.state))


def encode_clip(codec: Loaded[Codec], samples: Num[np.ndarray, " sample"]) -> Int32[np.ndarray, "codebook frame"]:
    """Returns the codes of one clip; it is padded to whole seconds, so that few programs are compiled.

    Raises:
        InputError: The samples are none, whole numbers or not finite.
    """
    check_samples(samples[None])
    return encode_clips(codec, [np.asarray(samples, np.float32)], 1)[0]


def encode_clips(
    codec: Loaded[Codec], clips: Sequence[Float32[np.ndarray, " _"]], batch_size: int
) -> list[Int32[np.ndarray, "codebook _"]]:
    """As `encode_clip`, of at most `batch_size` clips that last the same number of whole seconds, rounded up."""
    hop = codec.config.hop_length
    second = round(codec.config.frame_rate) * hop
    padded = np.zeros((batch_size, -(-max(map(len, clips)) // second) * second), np.float32)
    for row, clip in zip(padded, clips, strict=False):
        row[: len(clip)] = clip
    with jax.default_matmul_precision("highest"):
        codes = np.asarray(_encode(codec.graph, codec.state, padded))
    return [row[:, : -(-len(clip) // hop)] for row, clip in zip(codes, clips, strict=False)]


def decode_clip(
    codec: Loaded[Codec],
    codes: Int32[np.ndarray, "codebook frame"],
    features: Int32[np.ndarray, "frame feature"] | None = None,
    intonation: Intonation | None = None,
) -> Float32[np.ndarray, " sample"]:
    """Returns the samples of one clip's codes; padded to multiples of 50 frames, so that few programs are compiled.

    Args:
        codec: A voice's.
        codes: Of all codebooks, or of the leading ones.
        features: Linguistic features of each frame, for a codec whose decoder reads them; None = unknown.
        intonation: Of the clip, for a codec that can change the pitch; None = as the codes tell it.
    """
    stacked, frames = stack_codes([codes]), codes.shape[1]
    known = np.full((frames, NUM_FEATURES), UNKNOWN, np.int32) if features is None else features
    width = stacked.shape[2]
    moved = None if intonation is None else stack_intonations([intonation], width)
    samples = np.asarray(decode_codes(codec.graph, codec.state, stacked, stack_features([known], width), moved))
    return samples[0, : frames * codec.config.hop_length]


def open_units(voice: Path) -> tuple[SemanticUnits, FeatureSource]:
    """Opens the semantic units of a voice folder and what gives their features.

    Raises:
        InputError: The units are missing or damaged, or their feature source is not at hand.
    """
    units = load_units(voice / "units")
    if not units.source.startswith("hubert"):
        return units, load_whisper_encoder(units.layer)
    hubert = load_part(voice / "hubert", HubertConfig, Hubert)
    width = units.centroids.shape[1]
    if width != hubert.config.model_dim:
        raise InputError(f"{voice}: units of {width} dimensions do not fit HuBERT's {hubert.config.model_dim}")
    return units, HubertFeatures(nnx.merge(hubert.graph, hubert.state), units.layer)


def open_tokenizer(folder: Path, config: VoiceConfig, vocabulary_size: int) -> TextTokenizer:
    """Returns the tokenizer of this package, or the subwords that lie in the voice's folder.

    Raises:
        InputError: The voice was made for another version of the package's tokenizer.
    """
    subwords = folder / "text"
    if config.text_slots or subwords.exists():
        slots = config.text_slots or TEXT_WIDTHS[-1]
        capitalize = config.rules.lower_case_text
        rules = SubwordRules(capitalize=capitalize, max_tokens=slots, fill=config.text_slots > 0)
        return SubwordTokenizer(subwords, rules, vocabulary_size=vocabulary_size)
    tokenizer = PronunciationTokenizer()
    if config.text_fingerprint != tokenizer.fingerprint:
        raise InputError(f"{folder}: made for text tables {config.text_fingerprint}, here are {tokenizer.fingerprint}")
    return tokenizer


@functools.partial(jax.jit, static_argnums=0)
def _encode(graph: Any, state: Any, samples: Any) -> Any:
    return nnx.merge(graph, state).encode(samples)


def identify(folder: Path, parts: Sequence[str]) -> str:
    """Eight hex digits of the parts' checksums and of the voice's settings: what spoke, and how."""
    texts = [(folder / part / "sha256.json").read_bytes() for part in parts if read_settings(folder / part)]
    texts += [path.read_bytes() for name in (SETTINGS, BINS) if (path := folder / name).is_file()]
    return f"{zlib.crc32(b''.join(texts)):08x}"
