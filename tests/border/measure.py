"""Statistics of what was measured: a slope with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True, slots=True)
class Slope:
    """Bytes on the border for each byte of a prompt, by least squares.

    Attributes:
        low: The lower end of the 95 % interval.
        high: The upper end.
        n: How many points it rests on.
    """

    value: float
    low: float
    high: float
    n: int


def slope(points: Sequence[tuple[float, float]], beside: Sequence[float] | None = None) -> Slope:
    """The slope through (x, y), and its interval by Student's t.

    Args:
        points: What is compared.
        beside: What else y may follow, for each point: how many packets there were, say. Its part is told apart.

    Raises:
        ValueError: Too few points for an interval, or all at one x.
    """
    x, y = np.array(points, dtype=float).T
    columns = [np.ones_like(x), x]
    if beside is not None and len(set(beside)) > 1:
        columns.append(np.array(beside, dtype=float))
    design = np.column_stack(columns)
    freedom = len(points) - design.shape[1]
    if freedom < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
        raise ValueError("too few points, or too much alike")
    fitted, *_ = np.linalg.lstsq(design, y, rcond=None)
    rest = float(np.sum((y - design @ fitted) ** 2))
    error = math.sqrt(rest / freedom * float(np.linalg.inv(design.T @ design)[1, 1]))
    value, half = float(fitted[1]), student_t(freedom) * error
    return Slope(value, value - half, value + half, len(points))


def student_t(freedom: int) -> float:
    """Student's t for 95 %, both sides. Exact for 1 and 2 degrees, else within 0.5 % of the tables.

    Source: the expansion of Cornish and Fisher around the normal quantile.
    """
    if freedom < 3:
        return {1: 12.706, 2: 4.303}[freedom]
    z = NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))
