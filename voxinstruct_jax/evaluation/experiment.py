"""An experiment of `compare`: systems that speak the same requests, as a Python file names them.

`ablation` is the paper's table 6: which guidance helps.

Source:
    VoxInstruct, table 6; its strengths of 2 as `guidance.Guidance` has them.
"""

from dataclasses import dataclass
from typing import Literal

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.guidance import Guidance

__all__ = ["CompareExperiment", "Speaking", "ablation"]


@dataclass(frozen=True, kw_only=True)
class Speaking:
    """One system."""

    name: str
    voice: str | None = None
    """Voice folder; None = the one given on the command line, else the embedded one."""
    guidance: Guidance | None = None
    """None = that of the requests, else the voice's own."""
    trained_by: tuple[str, ...] = ()
    """Configurations of the voice's parts, where systems are trained on equal data and an equal budget; `voice` is then
    where their runs are converted to."""
    ar_of: str | None = None
    """Voice folder whose AR model it comes with, trained before."""

    def __post_init__(self) -> None:
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ConfigError(f"name {self.name!r}: names a folder, so it must be plain")


@dataclass(frozen=True, kw_only=True)
class CompareExperiment:
    """Systems, requests and seeds."""

    systems: tuple[Speaking, ...]
    """The first is what the others are compared with."""
    requests: str
    """Request file of `synthesize`; may also hold `reference_audio` and `speaker`."""
    seeds: tuple[int, ...] = (0,)
    limit: int | None = None
    """Only the first so many requests of each language; None = all."""
    kind: Literal["compare"] = "compare"

    def __post_init__(self) -> None:
        names = [system.name for system in self.systems]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ConfigError(f"systems: give two or more of different names, got {', '.join(names) or 'none'}")
        if not self.seeds:
            raise ConfigError("seeds: give at least one")


def ablation() -> tuple[Speaking, ...]:
    """The rows of table 6 that one checkpoint can speak.

    The paper's last row has no semantic tokens at all, in training either; that takes a model trained so. Blanking them
    by guidance (`semantic_on_acoustic=0`) is its nearest stand-in, and named as that.
    """
    strengths = {
        "no-guidance": (1.0, 1.0, 1.0),
        "instruction-on-ST-2": (2.0, 1.0, 1.0),
        "instruction-on-AT-2": (1.0, 2.0, 1.0),
        "ST-on-AT-2": (1.0, 1.0, 2.0),
        "ST-blanked": (1.0, 1.0, 0.0),
    }
    return tuple(
        Speaking(
            name=name,
            guidance=Guidance(text_on_semantic=gamma, text_on_acoustic=alpha, semantic_on_acoustic=beta),
        )
        for name, (gamma, alpha, beta) in strengths.items()
    )
