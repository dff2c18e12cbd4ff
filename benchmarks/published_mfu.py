"""Predicted against published MFU: what `plan` says of configurations whose speed others have measured.

Run: uv run --extra plan python benchmarks/published_mfu.py [--compile 16B]

Published: MaxText, MaxText/configs/v5e/README.md (expected performance on one v5e-256) with the settings of 16b.sh,
32b.sh and 64b.sh beside it (full remat, 2,048 tokens a row, fsdp over all chips), whose sizes follow from base.yml and
`global_parameter_scale`. Their MFU counts all of a square of attention, and so does the one printed here.
"""

import argparse
import dataclasses
import sys

from voxinstruct_jax.sharding.topology import prepare_environment

prepare_environment()

from voxinstruct_jax.data.plan import BatchConfig  # noqa: E402
from voxinstruct_jax.layers.execution import Execution  # noqa: E402 - JAX reads the environment at its import
from voxinstruct_jax.models.ar import ARConfig  # noqa: E402
from voxinstruct_jax.models.llama import LlamaConfig  # noqa: E402
from voxinstruct_jax.sharding.chips import CHIPS  # noqa: E402
from voxinstruct_jax.sharding.mesh import MeshConfig  # noqa: E402
from voxinstruct_jax.training.ar import ARExperiment  # noqa: E402
from voxinstruct_jax.training.flops import block_weights  # noqa: E402
from voxinstruct_jax.training.language_model import TokenData  # noqa: E402
from voxinstruct_jax.training.plan import plan_step  # noqa: E402
from voxinstruct_jax.vocabulary import Vocabulary  # noqa: E402

TIME, WORDS, CHIPS_USED = 2048, 32_000, 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """A configuration on v5e:16x16 and its MFU."""

    num_layers: int
    model_dim: int
    rows: int
    """A chip."""
    mfu: float


PUBLISHED = {
    "16B": Published(num_layers=32, model_dim=4096, rows=6, mfu=0.6110),
    "32B": Published(num_layers=32, model_dim=8192, rows=4, mfu=0.6686),
    "64B": Published(num_layers=64, model_dim=8192, rows=2, mfu=0.5990),
}
HEADS, HEAD_DIM, FFN_DIM = 64, 128, 28_672
"""Of all three."""


def main() -> int:
    """Plans each configuration and prints both figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--compile", nargs="*", default=[], choices=list(PUBLISHED), metavar="SIZE", help="not by formula"
    )
    options = parser.parse_args()
    print("size | step by plan, ms | bound by | MFU by plan | MFU published | share of the upper bound reached")
    for name, published in PUBLISHED.items():
        experiment = build(published)
        formula = name not in options.compile
        plan = plan_step(experiment, "v5e:16x16", effort=-1.0, formula=formula)
        if plan.step_s is None:
            print(f"{name} | does not fit: {plan.why_not}")
            continue
        useful = useful_flops(published)
        low, high = (useful / CHIPS_USED / CHIPS["v5e"].flops / time for time in reversed(plan.step_s))
        times = f"{plan.step_s[0] * 1e3:.0f} to {plan.step_s[1] * 1e3:.0f}"
        how = "formula" if formula else "compiled"
        print(
            f"{name} ({how}) | {times} | {plan.bound_by} | {low:.1%} to {high:.1%} | {published.mfu:.1%} | "
            f"{published.mfu / high:.2f}"
        )
    return 0


def build(published: Published) -> ARExperiment:
    """The AR model of those sizes; its text encoder is too small to count."""
    model = ARConfig.tiny(vocabulary=Vocabulary(codebook_size=WORDS - 506), channel_sizes=(8,))
    return ARExperiment(
        model=dataclasses.replace(model, backbone=backbone(published), dtype="bfloat16"),
        data=TokenData(batch=BatchConfig(text_width=128, time_width=TIME, rows=published.rows * CHIPS_USED)),
        execution=Execution(remat="full", scan=True),
        mesh=MeshConfig(fsdp=CHIPS_USED),
    )


def backbone(published: Published) -> LlamaConfig:
    """Sizes of the blocks."""
    return LlamaConfig(
        num_layers=published.num_layers,
        model_dim=published.model_dim,
        num_heads=HEADS,
        num_kv_heads=HEADS,
        head_dim=HEAD_DIM,
        ffn_dim=FFN_DIM,
        dropout=0.0,
    )


def useful_flops(published: Published) -> float:
    """Operations of a step as MaxText counts them: 6 a weight and token, 12 a layer, width and pair."""
    tokens = published.rows * CHIPS_USED * TIME
    weights = published.num_layers * block_weights(backbone(published)) + published.model_dim * WORDS
    return tokens * (6.0 * weights + 12.0 * published.num_layers * HEADS * HEAD_DIM * TIME)


if __name__ == "__main__":
    sys.exit(main())
