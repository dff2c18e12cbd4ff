"""Multi-condition guidance: which conditions a prediction is made under and how the predictions are mixed.

A request is run once a branch: with everything, without the instruction, without the semantic tokens. The mix is one
linear map over the branches, whatever they hold: logits in decoding, velocities in diffusion. Read `Guidance` first.
"""

import dataclasses
import enum
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from voxinstruct_jax.config import ConfigError

__all__ = ["Branch", "Guidance", "acoustic_weights", "mix_logits", "needed_branches", "semantic_weights"]


class Branch(enum.IntEnum):
    """A condition that a prediction is made under; the value is its place in a weight vector."""

    COND = 0
    """Instruction and semantic tokens, both real."""
    TEXT_FREE = 1
    """Empty instruction."""
    SEMANTIC_FREE = 2
    """Empty semantic tokens; BOS, language and EOS1 stay."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guidance:
    """Guidance strengths: 1 is none, more pushes harder away from the empty condition, 0 ignores the condition.

    Raises:
        ConfigError: A strength is negative or not a finite number.

    Source:
        VoxInstruct, section 4.3. The defaults are those of the released inference script; the paper gives none.
    """

    text_on_semantic: float = 1.5
    """Instruction on semantic tokens (gamma)."""
    text_on_acoustic: float = 3.0
    """Instruction on acoustic tokens (alpha)."""
    semantic_on_acoustic: float = 1.5
    """Semantic tokens on acoustic tokens (beta)."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"guidance.{field.name}: {value!r} is not a number from 0 up; 1 means none")


def semantic_weights(guidance: Guidance) -> Float[np.ndarray, " branch"]:
    """Returns the weight of each `Branch` while semantic tokens are sampled; they sum to 1.

    Source:
        VoxInstruct, equation 4, expanded: gamma cond + (1 - gamma) text_free.
    """
    gamma = guidance.text_on_semantic
    return np.array([gamma, 1 - gamma, 0], np.float32)


def acoustic_weights(guidance: Guidance) -> Float[np.ndarray, " branch"]:
    """Returns the weight of each `Branch` while acoustic tokens are sampled; they sum to 1.

    Source:
        VoxInstruct, equations 5 and 6, the first put into the second:
        alpha beta cond + beta (1 - alpha) text_free + (1 - beta) semantic_free.
    """
    alpha, beta = guidance.text_on_acoustic, guidance.semantic_on_acoustic
    return np.array([alpha * beta, beta * (1 - alpha), 1 - beta], np.float32)


def needed_branches(*guidances: Guidance) -> tuple[Branch, ...]:
    """Returns the branches that a batch with these strengths has to run, in the order of `Branch`.

    `COND` is always among them, since the language is predicted from it; the others only where a weight is not 0.
    """
    weights = [rule(guidance) for guidance in guidances for rule in (semantic_weights, acoustic_weights)]
    return tuple(branch for branch in Branch if branch == Branch.COND or any(row[branch] != 0 for row in weights))


def mix_logits(
    logits: Float[Array, "*batch branch vocab"], weights: Float[Array, "*#batch branch"]
) -> Float[Array, "*batch vocab"]:
    """Mixes the branches of each row into what is sampled from.

    Put range masks on the result, not on the branches: a negative weight makes +inf of -inf, a weight of 0 makes NaN.

    Args:
        logits: Unnormalised float32 logits, one row a branch in the order of `weights`.
        weights: From `semantic_weights` or `acoustic_weights`, cut to the branches that were run.

    Returns:
        Unnormalised guided logits.

    Source:
        VoxInstruct, section 4.3, equations 4 to 6, written there on log-probabilities. A branch's logits differ from
        them by one number for the whole vocabulary, and a softmax doesn't see it.
    """
    # Opposite weights cancel large terms; accelerators would round the products to bfloat16 by default.
    return jnp.einsum("...gv,...g->...v", logits, weights, precision=jax.lax.Precision.HIGHEST)
