"""The field's systems as rows of settings: path, prediction, times of training, guidance, solver.

A new baseline is a row here and a network that takes `Conditions`; no code of its own.
"""

import dataclasses

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.diffusion.guidance import DenoiserGuidance, dual, single
from voxinstruct_jax.diffusion.objective import Weighting
from voxinstruct_jax.diffusion.path import PathConfig
from voxinstruct_jax.diffusion.solvers import SamplerConfig
from voxinstruct_jax.diffusion.times import Grid, TimeDensity
from voxinstruct_jax.models.conditions import check_slots

__all__ = ["SYSTEMS", "DiffusionConfig"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionConfig:
    """What a denoiser is trained to do and how it is sampled, apart from its network.

    Raises:
        ConfigError: Shares of `drop` make no sense, or a slot is unknown.
    """

    path: PathConfig = PathConfig()
    times: TimeDensity = TimeDensity()
    weighting: Weighting = "uniform"
    drop: tuple[tuple[tuple[str, ...], float], ...] = ((("text", "content"), 0.1),)
    """(slots, share of rows that go without them in training); at most one for a row."""
    guidance: DenoiserGuidance = DenoiserGuidance()
    sampler: SamplerConfig = SamplerConfig()

    def __post_init__(self) -> None:
        shares = [share for _, share in self.drop]
        if min(shares, default=0.0) < 0 or sum(shares) > 1 + 1e-9:
            raise ConfigError(f"diffusion.drop: the shares {shares} must be at least 0 and sum to at most 1")
        for slots, _ in self.drop:
            check_slots("diffusion.drop", slots)


_COSINE_V = PathConfig(schedule="cosine", prediction="v")
_EDM = PathConfig(schedule="edm", prediction="edm")
_NORMAL = TimeDensity(kind="logit_normal")
_FURTHEST = 4.0
"""Latents of unit variance are hardly ever further from 0."""

SYSTEMS: dict[str, DiffusionConfig] = {
    "instructaudio": DiffusionConfig(
        path=PathConfig(prediction="data_velocity", data_at_one=True),
        drop=((("text", "content"), 0.1), (("text",), 0.1)),
        guidance=single(2.0),
        sampler=SamplerConfig(grid=Grid(steps=32)),
    ),
    "unison": DiffusionConfig(
        times=_NORMAL,
        drop=((("text",), 0.1),),
        guidance=single(4.5, ("text",)),
        sampler=SamplerConfig(grid=Grid(kind="last_short", steps=100)),
    ),
    "f5_tts": DiffusionConfig(
        path=PathConfig(prediction="data_velocity", data_at_one=True),
        # of the eight tenths that keep the words three tenths go without the source
        drop=((("source",), 0.24), (("text", "content", "source"), 0.2)),
        guidance=single(3.0, ("text", "content", "source")),
        sampler=SamplerConfig(grid=Grid(kind="sway", steps=32)),
    ),
    "tango_flux": DiffusionConfig(
        times=_NORMAL, guidance=single(3.0, ("text",)), sampler=SamplerConfig(grid=Grid(steps=50))
    ),
    "stable_audio": DiffusionConfig(
        path=_COSINE_V, guidance=single(7.0, ("text",)), sampler=SamplerConfig(solver="dpmpp_2m")
    ),
    "edm_sound": DiffusionConfig(
        path=_EDM,
        times=TimeDensity(kind="log_normal_noise", mean=-1.2, std=1.2),
        sampler=SamplerConfig(solver="heun", grid=Grid(kind="karras", steps=32)),
    ),
    "e3_tts": DiffusionConfig(
        path=PathConfig(schedule="cosine", prediction="epsilon"),
        guidance=single(3.0, ("text",)),
        sampler=SamplerConfig(solver="ancestral", limit=_FURTHEST),
    ),
    "voice_ldm": DiffusionConfig(
        path=PathConfig(schedule="cosine", prediction="epsilon"),
        drop=((("text",), 0.1), (("content",), 0.1), (("text", "content"), 0.1)),
        guidance=dual(1.0, 9.0),
        sampler=SamplerConfig(limit=_FURTHEST),
    ),
    "grad_tts": DiffusionConfig(
        path=PathConfig(schedule="vp_linear", prediction="epsilon", beta_min=0.05, beta_max=20.0),
        drop=(),
        sampler=SamplerConfig(grid=Grid(steps=50), temperature=1.5, limit=_FURTHEST),
    ),
    "bridge": DiffusionConfig(
        path=PathConfig(schedule="bridge", prediction="x0", beta_min=0.01, beta_max=20.0),
        drop=((("text",), 0.1),),
        sampler=SamplerConfig(solver="ancestral", grid=Grid(steps=10)),
    ),
    "flow_decoder": DiffusionConfig(
        path=PathConfig(prediction="x0"),
        drop=((("text", "source"), 0.1), (("text",), 0.1)),
        guidance=single(2.0, ("text", "source")),
        sampler=SamplerConfig(solver="midpoint", grid=Grid(steps=8)),
    ),
    "impact": DiffusionConfig(
        path=_COSINE_V,
        guidance=single(3.0),
        sampler=SamplerConfig(solver="ancestral"),
    ),
}
"""By name; `docs/baselines.md` says what of each is built."""
