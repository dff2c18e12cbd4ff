"""Every metric of one item: what each is, by whose protocol, and how it is counted from what a judge found.

What a metric is stands in `evaluation.score`; the metrics themselves in `word_metrics`, `voice_metrics`,
`control_metrics` and `sound_metrics`; those that only a set of items has in `set_metrics`.
"""

from collections.abc import Mapping

from voxinstruct_jax.evaluation.control_metrics import control_metrics
from voxinstruct_jax.evaluation.score import Metric
from voxinstruct_jax.evaluation.sound_metrics import sound_metrics
from voxinstruct_jax.evaluation.voice_metrics import voice_metrics
from voxinstruct_jax.evaluation.word_metrics import word_metrics
from voxinstruct_jax.judges.bins import Bins

__all__ = ["all_metrics"]


def all_metrics(bins: Bins | None, others: Mapping[str, str]) -> list[Metric]:
    """Every metric, in the order of reports.

    Args:
        bins: Boundaries of classes; None leaves pitch, energy and speed without classes.
        others: Stages of judges given by hand.
    """
    return [*word_metrics(others), *voice_metrics(others), *control_metrics(bins), *sound_metrics()]
