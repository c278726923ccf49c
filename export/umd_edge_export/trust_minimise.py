"""A minimum of a smooth function of a few numbers, without another package."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["minimise"]

Float64Array = npt.NDArray[np.float64]

_STEP = 1e-5
_ITERATIONS = 200
_TOLERANCE = 1e-7


def _gradient(function: Callable[[Float64Array], float], at: Float64Array) -> Float64Array:
    """Central differences: enough where parameters are few and values of order 1."""
    gradient = np.empty_like(at)
    for index in range(len(at)):
        step = np.zeros_like(at)
        step[index] = _STEP
        gradient[index] = (function(at + step) - function(at - step)) / (2 * _STEP)
    return gradient


def minimise(function: Callable[[Float64Array], float], start: npt.ArrayLike) -> Float64Array:
    """BFGS with backtracking.

    Args:
        function: Smooth and bounded below; parameters are of order 1.
        start: (P,).

    Returns:
        (P,) float64; never a point with a higher value than the start.

    Source:
        Nocedal and Wright, Numerical Optimization, algorithms 3.1 and 6.1.
    """
    at: Float64Array = np.asarray(start, np.float64).copy()
    value, gradient = function(at), _gradient(function, at)
    inverse = np.eye(len(at))
    for _ in range(_ITERATIONS):
        if np.abs(gradient).max() < _TOLERANCE:
            break
        direction = -inverse @ gradient
        slope = float(gradient @ direction)
        if slope >= 0:  # rounding has spoilt the curvature
            inverse, direction = np.eye(len(at)), -gradient
            slope = float(gradient @ direction)
        # No step of more than 1 in a parameter: far off, the exponentials are flat.
        length = min(1.0, 1.0 / float(np.abs(direction).max()))
        while function(at + length * direction) > value + 1e-4 * length * slope:
            length /= 2
            if length < 1e-10:
                return at
        step: Float64Array = length * direction
        at = np.add(at, step)
        value, fresh = function(at), _gradient(function, at)
        change, gradient = fresh - gradient, fresh
        curvature = float(change @ step)
        if curvature > 1e-12:
            outer = np.eye(len(at)) - np.outer(step, change) / curvature
            inverse = outer @ inverse @ outer.T + np.outer(step, step) / curvature
    return at
