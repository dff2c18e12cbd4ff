"""What a denoiser is told besides the noisy latents, and the only way to leave a part of it out."""

import dataclasses
from collections.abc import Collection

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from voxinstruct_jax.config import ConfigError

__all__ = ["SLOTS", "Conditions", "check_slots", "null_conditions", "stack_branches"]

SLOTS = ("text", "content", "source")
"""Names that can be dropped. A dropped text or content has no visible token, in training and in sampling alike; a
dropped source is zero, and its task tag stays."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditions:
    """One row a sample; a part that a system has no use for is None."""

    text: Float[Array, "batch layer token text_dim"] | None = None
    """Hidden states of a text encoder: one layer, or one a block of the network."""
    text_mask: Bool[Array, "batch token"] | None = None
    """True = a real token."""
    content: Int[Array, "batch phone"] | None = None
    """Ids of what is spoken, 0 = padding."""
    content_mask: Bool[Array, "batch phone"] | None = None
    """True = a real id."""
    source: Float[Array, "batch time channel"] | None = None
    """Latents to edit, or of a voice to speak with; zero where there are none."""
    task_tag: Float[Array, "batch time"] | None = None
    """0 generation, 1 editing, 2 reference of a voice."""


def check_slots(name: str, slots: Collection[str]) -> None:
    """Checks that parts of the conditions can be dropped.

    Args:
        name: Of the setting that names them.
        slots: Names.

    Raises:
        ConfigError: One is none of `SLOTS`.
    """
    unknown = sorted(set(slots) - set(SLOTS))
    if unknown:
        raise ConfigError(f"{name}: {unknown[0]!r} is none of {', '.join(SLOTS)}")


def null_conditions(conditions: Conditions, slots: Collection[str], rows: Bool[Array, " batch"]) -> Conditions:
    """Leaves named parts out on chosen rows.

    Args:
        conditions: Whole.
        slots: Of `SLOTS`; those that the conditions do not have are passed over.
        rows: True = without.

    Raises:
        ConfigError: A slot is unknown.
    """
    check_slots("conditions", slots)
    changed = {}
    for slot, name in (("text", "text_mask"), ("content", "content_mask")):
        mask = getattr(conditions, name)
        if slot in slots and mask is not None:
            changed[name] = mask & ~rows[:, None]
    if "source" in slots and conditions.source is not None:
        changed["source"] = jnp.where(rows[:, None, None], 0, conditions.source)
    return dataclasses.replace(conditions, **changed)


def stack_branches(conditions: Conditions, branches: tuple[tuple[str, ...], ...], num_rows: int) -> Conditions:
    """Repeats the rows once a branch, each going without its slots: all rows of the first branch come first."""
    every = jnp.ones(num_rows, bool)
    copies = [null_conditions(conditions, slots, every) for slots in branches]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *copies)
