"""Metrics of the voice and of how natural it sounds: similarities, opinions of networks.

Source:
    VoxInstruct, section 5.1 (SECS); audioldm_eval, metrics/kl.py (KL over probabilities); the sources of
    `judges.speaker` and `judges.dnsmos`.
"""

from collections.abc import Mapping

import numpy as np

from voxinstruct_jax.evaluation.items import Item
from voxinstruct_jax.evaluation.score import Findings, Metric, Score
from voxinstruct_jax.judges.dnsmos import DNSMOS_SCORES

__all__ = ["voice_metrics"]

KL_FLOOR = 1e-6


def voice_metrics(others: Mapping[str, str]) -> list[Metric]:
    """Similarities and opinions.

    Args:
        others: Stages of judges given by hand.
    """
    return [*_similarities(others), *_opinions(others), *_divergences(others)]


def _similarities(others: Mapping[str, str]) -> list[Metric]:
    stages = dict.fromkeys(("similarity.vox", "similarity.wavlm_sv", "similarity.emotion"))
    stages |= dict.fromkeys(name for name in others if name.startswith("similarity."))

    def cosine(stage: str, which: str) -> Metric:
        def measure(item: Item, findings: Findings) -> Score:
            found = findings[stage]
            return Score(n=float(np.dot(found["clip"], found[which])))

        return Metric(
            id=f"{stage}.{which}",
            unit="cosine",
            better="higher",
            protocol=f"cosine of the embeddings of clip and {_SIDES[which]}, 16 kHz, pauses cut, -30 dBFS"
            if stage == "similarity.vox"
            else f"cosine of the embeddings of clip and {_SIDES[which]}",
            stage=stage,
            measure=measure,
            applies=lambda item: bool(item.prompt if which == "prompt" else item.reference_audio),
            worst=0.0,
            tie=0.01,
        )

    return [cosine(stage, which) for stage in stages for which in _SIDES]


def _divergences(others: Mapping[str, str]) -> list[Metric]:
    """How far the classes that are heard in a clip are from those in its reference."""

    def divergence(stage: str) -> Metric:
        def measure(item: Item, findings: Findings) -> Score:
            true, found = (np.array(findings[stage][which]) for which in ("reference", "clip"))
            return Score(n=float(np.sum(true * np.log((true + KL_FLOOR) / (found + KL_FLOOR)))))

        return Metric(
            id=f"kl.{stage.partition('.')[2]}",
            unit="nats",
            better="lower",
            protocol="KL(reference || clip) of class probabilities, 1e-6 inside the logarithm; mean of items",
            stage=stage,
            measure=measure,
            applies=lambda item: item.reference_audio is not None,
        )

    given = [name for name in others if name.startswith("classes.")]
    return [divergence(stage) for stage in dict.fromkeys(["classes.panns", *given])]


_SIDES = {"prompt": "voice prompt", "reference": "reference recording"}


def _opinions(others: Mapping[str, str]) -> list[Metric]:
    def score(stage: str, name: str, key: str, unit: str, protocol: str) -> Metric:
        return Metric(
            id=name,
            unit=unit,
            better="higher",
            protocol=protocol,
            stage=stage,
            measure=lambda item, findings: Score(n=findings[stage][key]),
            worst=1.0 if unit.startswith("MOS") else 0.0,
            tie=0.05,
        )

    dnsmos = [
        score(
            "mos.dnsmos",
            f"mos.dnsmos.{name}",
            name,
            "MOS 1-5",
            "DNSMOS "
            + ("P.808" if name == "p808" else "P.835")
            + ", windows of 9.01 s a second apart; void below 1 s of "
            "speech; missing = 1",
        )
        for name in DNSMOS_SCORES
    ]
    known = ("mos.utmos", "mos.distillmos", "clap.laion")
    names = dict.fromkeys([*known, *(name for name in others if name.startswith(("mos.", "clap.")))])
    return dnsmos + [
        score(name, name, "score", "MOS 1-5" if name.startswith("mos.") else "cosine", "as the judge has it")
        for name in names
    ]
