"""Finds the judge of each attribute: those of this package, entry points, and classes named on the command line.

A package of yours offers a judge by an entry point of the group `voxinstruct_jax.judges`, whose name is the attribute;
an entry point or a class named by hand takes the place of a judge of this package. Read `find_judges`.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module, metadata
from typing import Any

from voxinstruct_jax.config import ConfigError
from voxinstruct_jax.judges.judge import Judge

__all__ = ["ENTRY_POINTS", "OFFLINE", "find_judges", "judge_places"]

ENTRY_POINTS = "voxinstruct_jax.judges"
OFFLINE = {
    "gender": "voxinstruct_jax.judges.gender:GenderJudge",
    "pitch": "voxinstruct_jax.judges.prosody:PitchJudge",
    "energy": "voxinstruct_jax.judges.prosody:EnergyJudge",
    "speed": "voxinstruct_jax.judges.prosody:SpeedJudge",
}
"""Judges that need nothing but this package."""


def judge_places(given: Mapping[str, str]) -> dict[str, str]:
    """Returns `module:class` of every attribute that can be judged.

    Args:
        given: Those named by hand.
    """
    installed = {point.name: point.value for point in metadata.entry_points(group=ENTRY_POINTS)}
    return {**OFFLINE, **installed, **given}


def find_judges(attributes: Sequence[str], places: Mapping[str, str]) -> dict[str, Judge]:
    """Opens one judge an attribute, in the order of `attributes`.

    Args:
        attributes: What to judge.
        places: Of `judge_places`.

    Raises:
        ConfigError: There is no judge of an attribute, or what stands in its place is none.
    """
    return {attribute: _open(attribute, places) for attribute in attributes}


def _open(attribute: str, places: Mapping[str, str]) -> Judge:
    if attribute not in places:
        raise ConfigError(
            f"{attribute}: no judge comes with this package; install one that offers the entry point "
            f"{ENTRY_POINTS}, name a class of yours by --judge {attribute}=MODULE:CLASS, or leave {attribute} out"
        )
    module, _, name = places[attribute].partition(":")
    try:
        judge: Any = getattr(import_module(module), name)()
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(
            f"{attribute}: judge {places[attribute]!r} cannot be opened ({error}); give MODULE:CLASS of a class that "
            "is made without arguments, its module on the Python path"
        ) from error
    missing = [member for member in ("attribute", "name", "unit", "measure") if not hasattr(judge, member)]
    if missing or judge.attribute != attribute:
        raise ConfigError(
            f"{attribute}: judge {places[attribute]!r} "
            + (f"lacks {', '.join(missing)}" if missing else f"judges {judge.attribute}")
            + "; see voxinstruct_jax.judges.judge.Judge"
        )
    return judge
