"""The project's own neural codec: log-mel → ConvNeXt encoder → residual quantiser at 25 Hz → Vocos decoder.

A low frame rate is the largest lever on speed (25 AR steps a second of speech against EnCodec's 75). Levels are not
normalised on the way in: loudness is something an instruction asks for, so the codes must carry it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Num

from voxinstruct_jax.audio.harmonics import Intonation, intone, likely_pitch
from voxinstruct_jax.audio.linguistic import NUM_FEATURES, FeatureReader, Melody, follow_melody
from voxinstruct_jax.audio.quantizer import QuantizerConfig, ResidualQuantizer, check_codebooks, check_codes
from voxinstruct_jax.audio.spectrogram import MelConfig, log_mel
from voxinstruct_jax.audio.vocos import Vocos, VocosConfig
from voxinstruct_jax.audio.waveform import check_samples
from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.layers.convolution import ConvNeXtBlock

__all__ = ["ENCODER_PARTS", "CodecConfig", "CodecTraining", "MelCodec"]

ENCODER_PARTS = frozenset(["patch", "encoder_norm", "encoder", "to_latent", "quantizer", "unit_head"])
"""Parts of a `MelCodec` that make its codes, and the head that taught them; the others make sound of codes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """Sizes of the codec. `downsample` mel frames make one codec frame."""

    mel: MelConfig = MelConfig()
    quantizer: QuantizerConfig = QuantizerConfig()
    vocos: VocosConfig = VocosConfig()
    downsample: int = 4
    model_dim: int = 256
    ffn_dim: int = 768
    num_layers: int = 5  # encoder blocks at the codec's frame rate
    num_decoder_layers: int = 4  # blocks at the codec's frame rate ahead of Vocos
    num_units: int = 0
    """Semantic units that the first codebook alone must tell in training; 0 = it need not."""
    feature_sizes: tuple[int, ...] = ()
    """Values of each of the `NUM_FEATURES` linguistic features of a frame, which the decoder then reads beside codes;
    () = it reads none."""
    melody_dim: int = 0
    """Channels of the network that tells the course of pitch from the features; 0 = there is none: codes tell it."""

    def __post_init__(self) -> None:
        if len(self.feature_sizes) not in (0, NUM_FEATURES):
            raise ConfigError(f"feature_sizes: {list(self.feature_sizes)}; give {NUM_FEATURES} numbers or none")
        if self.melody_dim and not (self.feature_sizes and self.vocos.source_rate):
            raise ConfigError("melody_dim: a melody needs feature_sizes to be told from, and vocos.source_rate")
        if self.vocos.hop_length != self.mel.hop_length:
            raise ConfigError(
                f"vocos.hop_length {self.vocos.hop_length} must equal mel.hop_length {self.mel.hop_length}"
            )
        if self.vocos.source_rate not in (0, self.mel.sample_rate):
            raise ConfigError(
                f"vocos.source_rate {self.vocos.source_rate} must be 0 or mel.sample_rate {self.mel.sample_rate}"
            )

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return self.mel.sample_rate

    @property
    def hop_length(self) -> int:
        """Samples a codec frame."""
        return self.mel.hop_length * self.downsample

    @property
    def frame_rate(self) -> float:
        """Codec frames a second, Hz."""
        return self.sample_rate / self.hop_length

    @property
    def num_codebooks(self) -> int:
        """Codebooks in the stack."""
        return self.quantizer.num_codebooks

    @property
    def codebook_size(self) -> int:
        """Entries a codebook."""
        return self.quantizer.codebook_size

    @classmethod
    def small(cls) -> "CodecConfig":
        """The embedded voice's codec without its melody, which is trained last: about 6M parameters, 1.5 kbit/s."""
        quantizer = QuantizerConfig(num_codebooks=6, codebook_size=1024, dropout=1.0)
        vocos = VocosConfig(source_rate=MelConfig().sample_rate)
        return cls(quantizer=quantizer, vocos=vocos, num_units=256, feature_sizes=(256, 93, 281, 93, 281))

    @classmethod
    def tiny(cls) -> "CodecConfig":
        """A codec for tests."""
        return cls(
            mel=MelConfig(num_mels=40),
            quantizer=QuantizerConfig(latent_dim=16, num_codebooks=4, codebook_size=32),
            vocos=VocosConfig(dim=32, ffn_dim=64, num_layers=2),
            model_dim=32,
            ffn_dim=64,
            num_layers=1,
            num_decoder_layers=1,
        )


class MelCodec(nnx.Module):
    """Encodes speech to codes and back; causal in nothing, so whole clips are coded at once."""

    def __init__(self, config: CodecConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        dim, stride = config.model_dim, config.downsample
        init = nnx.initializers.truncated_normal(0.02)
        self.patch = nnx.Linear(stride * config.mel.num_mels, dim, rngs=rngs)
        self.encoder_norm = nnx.LayerNorm(dim, epsilon=1e-6, rngs=rngs)
        self.encoder = _blocks(config, config.num_layers, rngs)
        self.to_latent = nnx.Linear(dim, config.quantizer.latent_dim, rngs=rngs)
        self.quantizer = ResidualQuantizer(config.quantizer, rngs=rngs)
        if config.num_units:
            self.unit_head = nnx.Linear(config.quantizer.latent_dim, config.num_units, rngs=rngs)
        self.from_latent = nnx.Linear(config.quantizer.latent_dim, dim, rngs=rngs)
        if config.feature_sizes:
            self.features = FeatureReader(config.feature_sizes, dim, rngs=rngs)
        if config.melody_dim:
            self.melody = Melody(config.feature_sizes, config.melody_dim, stride, rngs=rngs)
        self.decoder = _blocks(config, config.num_decoder_layers, rngs)
        self.upsample = nnx.Linear(dim, stride * config.vocos.dim, kernel_init=init, rngs=rngs)
        self.vocos = Vocos(config.vocos, rngs=rngs)

    def encode(
        self, samples: Num[Array | np.ndarray, "batch sample"], num_codebooks: int | None = None
    ) -> Int[Array, "batch codebook frame"]:
        """Returns codes; `frame = ceil(sample / hop_length)`, the rest of the last frame being silence.

        Args:
            samples: At `config.sample_rate`.
            num_codebooks: Leading codebooks; by default all.

        Raises:
            InputError: There are not as many codebooks, or the samples are none, whole numbers or not finite.
        """
        count = check_codebooks(num_codebooks or self.config.num_codebooks, self.config.num_codebooks)
        return self.quantizer.encode(self.latents(check_samples(samples)))[:, :count]

    def decode(
        self,
        codes: Int[Array | np.ndarray, "batch codebook frame"],
        features: Int[Array | np.ndarray, "batch frame feature"] | None = None,
        intonation: Intonation | None = None,
    ) -> Float[Array, "batch sample"]:
        """Returns the waveform; `sample = frame * hop_length`. Leading codebooks alone give a coarser sound.

        Args:
            codes: Of all codebooks, or of the leading ones.
            features: Linguistic features of each frame, for a decoder that reads them; None = unknown. Where they are
                known, a codec with a melody takes the course of pitch from them.
            intonation: Changes the pitch; a decoder without a harmonic source can't, and leaves it as it is.

        Raises:
            InputError: There are not as many codebooks or entries, or no frames.
        """
        checked = check_codes(codes, self.config.num_codebooks, self.config.codebook_size)
        latents = self.quantizer.decode(checked)
        if not self.config.vocos.source_rate:
            return self.waveform(latents, features)
        hidden = self.vocos.hidden(self._conditioned(latents, features))
        pitch = likely_pitch(self.vocos.pitch_head(hidden))
        if self.config.melody_dim and features is not None:
            told = jnp.asarray(features)
            pitch = follow_melody(pitch, self.melody(told), told)
        return self.vocos.sound(hidden, pitch if intonation is None else intone(pitch, intonation))

    def latents(self, samples: Float[Array, "batch sample"]) -> Float[Array, "batch frame latent"]:
        """Encodes up to the quantiser."""
        config = self.config
        padded = jnp.pad(samples, ((0, 0), (0, -samples.shape[1] % config.hop_length)))
        mel = (log_mel(padded, config.mel) + 5.0) / 3.0  # about zero mean and unit variance on speech; no level lost
        batch, frames, _ = mel.shape
        x = self.encoder_norm(self.patch(mel.reshape(batch, frames // config.downsample, -1)))
        for block in self.encoder:
            x = block(x)
        return self.to_latent(x)

    def waveform(
        self,
        latents: Float[Array, "batch frame latent"],
        features: Int[Array | np.ndarray, "batch frame feature"] | None = None,
    ) -> Float[Array, "batch sample"]:
        """Decodes latents, quantised or not; `features` as in `decode`."""
        return self.vocos(self._conditioned(latents, features))

    def sound(
        self,
        latents: Float[Array, "batch frame latent"],
        features: Int[Array | np.ndarray, "batch frame feature"] | None = None,
        pitch: Float[Array, "batch mel_frame"] | None = None,
    ) -> tuple[Float[Array, "batch sample"], Float[Array, "batch mel_frame pitch_class"] | None]:
        """Decodes latents, at a given pitch in training; returns what the decoder takes the pitch for, too.

        Args:
            latents: As of `waveform`.
            features: As of `decode`.
            pitch: Of each mel frame (Hz); 0 = unvoiced. None = as the decoder tells it. Not read without a source.
        """
        hidden = self.vocos.hidden(self._conditioned(latents, features))
        logits = self.vocos.pitch_head(hidden) if self.config.vocos.source_rate else None
        return self.vocos.sound(hidden, pitch), logits

    def reconstruct(
        self,
        samples: Float[Array, "batch sample"],
        key: jax.Array,
        pitch: Float[Array, "batch mel_frame"] | None = None,
    ) -> "CodecTraining":
        """One training pass: straight-through quantisation, codebooks moved (a side effect on their state).

        Args:
            samples: At `config.sample_rate`.
            key: Draws how many codebooks are used.
            pitch: As of `sound`.
        """
        quantised = self.quantizer.train_step(self.latents(samples), key)
        made, pitch_logits = self.sound(quantised.latents, None, pitch)
        return CodecTraining(
            samples=made,
            pitch_logits=pitch_logits,
            commitment=quantised.commitment,
            perplexity=quantised.perplexity,
            unit_logits=self.unit_head(quantised.first) if self.config.num_units else None,
        )

    def _conditioned(
        self,
        latents: Float[Array, "batch frame latent"],
        features: Int[Array | np.ndarray, "batch frame feature"] | None,
    ) -> Float[Array, "batch mel_frame dim"]:
        """What Vocos makes the waveform from."""
        x = self.from_latent(latents)
        if self.config.feature_sizes:
            unknown = jnp.full((*x.shape[:2], NUM_FEATURES), -1)
            x += self.features(unknown if features is None else jnp.asarray(features))
        for block in self.decoder:
            x = block(x)
        batch, frames, _ = x.shape
        return self.upsample(x).reshape(batch, frames * self.config.downsample, -1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodecTraining:
    """What the codec's objective reads."""

    samples: Float[Array, "batch sample"]
    pitch_logits: Float[Array, "batch mel_frame pitch_class"] | None
    """Of a decoder with a harmonic source."""
    commitment: Float[Array, ""]
    perplexity: Float[Array, " codebook"]
    unit_logits: Float[Array, "batch frame unit"] | None
    """Of the semantic unit of each frame, from the first codebook alone."""


def _blocks(config: CodecConfig, count: int, rngs: nnx.Rngs) -> nnx.List:
    return nnx.List(
        [ConvNeXtBlock(config.model_dim, config.ffn_dim, scale=1 / max(count, 1), rngs=rngs) for _ in range(count)]
    )
