"""Attributes of speech that a description names and a model is taught to read: names and classes, the one home."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int32

__all__ = ["STYLE_CLASSES", "class_numbers"]

STYLE_CLASSES: Mapping[str, tuple[str, ...]] = {
    "gender": ("female", "male"),
    "pitch": ("low", "normal", "high"),
    "energy": ("low", "normal", "high"),
    "speed": ("slow", "normal", "fast"),
}
"""Classes of each, from the lowest value up where they have an order."""


def class_numbers(attributes: Mapping[str, Any]) -> Int32[np.ndarray, " attribute"]:
    """Numbers what is known of a clip: classes from 1 in the order of `STYLE_CLASSES`; 0 = not known, or another."""
    known = (attributes.get(name) for name in STYLE_CLASSES)
    numbers = [
        classes.index(value) + 1 if value in classes else 0
        for value, classes in zip(known, STYLE_CLASSES.values(), strict=True)
    ]
    return np.array(numbers, np.int32)
