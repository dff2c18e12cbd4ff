"""How many operations a program takes: products and convolutions, loops as often as they run."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

__all__ = ["count_operations", "jaxpr_operations"]


def count_operations(function: Callable[..., Any], *arguments: Any) -> float:
    """As `jaxpr_operations`, of a function that is traced for it; nothing is compiled or run.

    Args:
        function: Traceable by JAX.
        *arguments: Arrays, or `jax.ShapeDtypeStruct` in their place.
    """
    return jaxpr_operations(jax.make_jaxpr(function)(*arguments).jaxpr)


def jaxpr_operations(jaxpr: Any) -> float:
    """Counts multiplications and additions of a traced program's products.

    A loop without a known number of turns counts as one turn, and of a choice the dearest branch counts (the branches
    of a choice by platform do the same work).
    """
    return math.fsum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: Any) -> float:
    name, values = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = values["dimension_numbers"]
        inputs = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(inputs[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = values["dimension_numbers"].rhs_spec[0]  # the kernel's axis of output channels
        taps = math.prod(size for axis, size in enumerate(kernel) if axis != outputs)
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * taps
    inner = [jaxpr_operations(each) for each in _programs(values.values())]
    if name == "cond":
        return max(inner, default=0.0)
    return math.fsum(inner) * (values["length"] if name == "scan" else 1)


def _programs(values: Iterable[Any]) -> Iterator[Any]:
    """Programs inside an equation."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _programs(value)
            continue
        found = getattr(value, "jaxpr", value)
        if hasattr(found, "eqns"):
            yield found
