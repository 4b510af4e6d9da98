"""What a network can predict, and every conversion between the four (float64 round trips are tested).

With x = alpha x0 + sigma epsilon:  v = alpha epsilon - sigma x0 (Salimans and Ho 2022), velocity = epsilon - x0, the
direction of the straight line from data to noise (Liu et al. 2023). No conversion assumes alpha^2 + sigma^2 = 1 or
alpha + sigma = 1, so each holds on each schedule. A prediction of epsilon says nothing of x0 where alpha is 0, one of x0
nothing of epsilon where sigma is 0; v and velocity are good at both ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

Kind = Literal["epsilon", "v", "x0", "velocity"]


def epsilon_to_x0(x: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return (x - sigma * epsilon) / alpha


def epsilon_to_v(x: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return ((alpha**2 + sigma**2) * epsilon - sigma * x) / alpha


def epsilon_to_velocity(x: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return ((alpha + sigma) * epsilon - x) / alpha


def x0_to_epsilon(x: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return (x - alpha * x0) / sigma


def x0_to_v(x: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return (alpha * x - (alpha**2 + sigma**2) * x0) / sigma


def x0_to_velocity(x: Tensor, x0: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return (x - (alpha + sigma) * x0) / sigma


def v_to_x0(x: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return (alpha * x - sigma * v) / (alpha**2 + sigma**2)


def v_to_epsilon(x: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return (sigma * x + alpha * v) / (alpha**2 + sigma**2)


def v_to_velocity(x: Tensor, v: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return ((sigma - alpha) * x + (alpha + sigma) * v) / (alpha**2 + sigma**2)


def velocity_to_x0(x: Tensor, velocity: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return (x - sigma * velocity) / (alpha + sigma)


def velocity_to_epsilon(x: Tensor, velocity: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return (x + alpha * velocity) / (alpha + sigma)


def velocity_to_v(x: Tensor, velocity: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return ((alpha - sigma) * x + (alpha**2 + sigma**2) * velocity) / (alpha + sigma)


def _same(x: Tensor, prediction: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    return prediction


CONVERSIONS: dict[tuple[Kind, Kind], Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    ("epsilon", "epsilon"): _same,
    ("epsilon", "x0"): epsilon_to_x0,
    ("epsilon", "v"): epsilon_to_v,
    ("epsilon", "velocity"): epsilon_to_velocity,
    ("x0", "x0"): _same,
    ("x0", "epsilon"): x0_to_epsilon,
    ("x0", "v"): x0_to_v,
    ("x0", "velocity"): x0_to_velocity,
    ("v", "v"): _same,
    ("v", "x0"): v_to_x0,
    ("v", "epsilon"): v_to_epsilon,
    ("v", "velocity"): v_to_velocity,
    ("velocity", "velocity"): _same,
    ("velocity", "x0"): velocity_to_x0,
    ("velocity", "epsilon"): velocity_to_epsilon,
    ("velocity", "v"): velocity_to_v,
}


def to_x0(kind: Kind, x: Tensor, prediction: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The clean latent that a prediction means."""
    return CONVERSIONS[kind, "x0"](x, prediction, alpha, sigma)


def target(kind: Kind, x0: Tensor, epsilon: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What a perfect network would predict for alpha x0 + sigma epsilon."""
    if kind == "epsilon":
        return epsilon
    if kind == "x0":
        return x0
    if kind == "v":
        return alpha * epsilon - sigma * x0
    assert kind == "velocity", f"unknown prediction {kind!r}"
    return epsilon - x0
