"""What every codec offers, and which one a folder holds: the frame rate of a system is a choice of this one part."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Num

from voxinstruct_jax.audio.codec import ENCODER_PARTS, CodecConfig, MelCodec
from voxinstruct_jax.audio.encodec import Encodec, EncodecConfig
from voxinstruct_jax.audio.mimi import Mimi, MimiConfig
from voxinstruct_jax.audio.published_vocos import CodeVocos, CodeVocosConfig
from voxinstruct_jax.config import ConfigError, InputError

__all__ = ["Codec", "CodecSizes", "EncodecVocos", "EncodecVocosConfig", "codec_classes", "codes_fingerprint"]


@runtime_checkable
class CodecSizes(Protocol):
    """What others need to know of a codec's settings."""

    @property
    def sample_rate(self) -> int: ...
    @property
    def hop_length(self) -> int: ...
    @property
    def frame_rate(self) -> float: ...
    @property
    def num_codebooks(self) -> int: ...
    @property
    def codebook_size(self) -> int: ...


@runtime_checkable
class Codec(Protocol):
    """Sound to codes and back.

    `encode` takes mono samples at `config.sample_rate` and gives `ceil(sample / hop_length)` frames of the leading
    codebooks, `config.num_codebooks` unless told otherwise. `decode` gives `frame * hop_length` samples.
    """

    @property
    def config(self) -> CodecSizes: ...
    def encode(
        self, samples: Float[Array, "batch sample"], num_codebooks: int | None = None
    ) -> Int[Array, "batch codebook frame"]: ...
    def decode(self, codes: Int[Array, "batch codebook frame"]) -> Float[Array, "batch sample"]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncodecVocosConfig:
    """EnCodec whose codes Vocos turns into sound.

    Raises:
        ConfigError: The two do not fit together.
    """

    encodec: EncodecConfig = EncodecConfig()
    vocos: CodeVocosConfig = CodeVocosConfig()
    bandwidth_id: int = 2
    """Which of Vocos' bandwidths: 0 to 3 for 2, 4, 8 and 16 codebooks."""

    def __post_init__(self) -> None:
        sizes = (self.encodec.hop_length, self.encodec.codebook_size)
        if sizes != (self.vocos.features.hop_length, self.vocos.codebook_size):
            raise ConfigError("encodec and vocos must agree on hop_length and codebook_size")
        if self.encodec.num_codebooks > self.vocos.stack_size:
            raise ConfigError(f"num_codebooks {self.encodec.num_codebooks}: vocos has {self.vocos.stack_size} at most")
        if self.vocos.features.padding != "same":
            raise ConfigError("vocos.features.padding must be 'same': each frame gives one hop")

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.encodec.sample_rate

    @property
    def hop_length(self) -> int:
        """Samples a frame."""
        return self.encodec.hop_length

    @property
    def frame_rate(self) -> float:
        """Frames a second, Hz."""
        return self.encodec.frame_rate

    @property
    def num_codebooks(self) -> int:
        """Codebooks that `encode` gives unless asked for another number."""
        return self.encodec.num_codebooks

    @property
    def codebook_size(self) -> int:
        """Entries a codebook."""
        return self.encodec.codebook_size

    @classmethod
    def tiny(cls) -> "EncodecVocosConfig":
        """For tests."""
        return cls(encodec=EncodecConfig.tiny(), vocos=CodeVocosConfig.tiny())


class EncodecVocos(nnx.Module):
    """The paper's pair: EnCodec's encoder and codebooks, and Vocos in place of its decoder."""

    def __init__(self, config: EncodecVocosConfig, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> None:
        self.config = config
        self.encodec = Encodec(config.encodec, dtype=dtype, rngs=rngs)
        self.vocos = CodeVocos(config.vocos, dtype=dtype, rngs=rngs)

    def encode(
        self, samples: Num[Array | np.ndarray, "batch sample"], num_codebooks: int | None = None
    ) -> Int[Array, "batch codebook frame"]:
        """As `Encodec.encode`."""
        return self.encodec.encode(samples, num_codebooks)

    def decode(self, codes: Int[Array | np.ndarray, "batch codebook frame"]) -> Float[Array, "batch sample"]:
        """Returns the waveform; `sample = frame * hop_length`.

        Raises:
            InputError: Vocos' table does not hold as many codebooks.
        """
        return self.vocos(codes, self.config.bandwidth_id)


KINDS: dict[str, tuple[type, Callable[..., Any]]] = {
    "codec": (CodecConfig, MelCodec),
    "encodec": (EncodecConfig, Encodec),
    "encodec_vocos": (EncodecVocosConfig, EncodecVocos),
    "mimi": (MimiConfig, Mimi),
}


def codec_classes(kind: str) -> tuple[type, Callable[..., Any]]:
    """Returns the classes of the settings and of the module for the `kind` in a codec folder's `config.json`.

    Raises:
        InputError: There is no such kind.
    """
    if kind not in KINDS:
        raise InputError(f"no codec of kind {kind!r}; known: {', '.join(KINDS)}")
    return KINDS[kind]


def codes_fingerprint(config: CodecSizes, arrays: Any) -> str:
    """Sixteen hex digits that change with whatever codes depend on; a decoder that learns on leaves them as they are.

    Args:
        config: Of the codec.
        arrays: Its weights as nested dicts, in any precision that they fit in.
    """
    if isinstance(config, CodecConfig):
        arrays = {name: arrays[name] for name in sorted(arrays.keys() & ENCODER_PARTS)}
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        found.update(jax.tree_util.keystr(path).encode() + np.asarray(leaf, np.float32).tobytes())
    return found.hexdigest()[:16]
