"""Celo2 (arXiv 2602.19142) written down slowly, one tensor at a time, in float64 numpy.

Of a matrix or convolution: 30 features, each over its root mean square; a network 30-8-8-3 of which
the first output is used; that output over its root mean square; Newton-Schulz iterations; the same
normalisation again. Of all else: AdamW.
"""

from __future__ import annotations

import math

import numpy as np

from tests.lo_framework.learned.reference import FACTORED, MOMENTUM, AdafacMLP, Array

BETA_2 = 0.95
EPS = 1e-9
ITERATIONS, COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)


def normalised(u: Array) -> Array:
    return u / np.sqrt(EPS + (u * u).mean())


def orthogonal(u: Array) -> Array:
    """Of the matrix of outputs by the rest."""
    x = u.reshape(len(u), -1)
    x = x / np.linalg.norm(x)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = a * x + b * square @ x + c * square @ square @ x
    return x.reshape(u.shape)


def planned(t: int, steps: int) -> float:
    """The share of the step at step ``t`` of a run: a warm-up of 5%, then a cosine."""
    if t / steps < 0.05:
        return min(1.0, (t + 1) / (0.05 * steps))
    return 0.5 + 0.5 * math.cos(math.pi * (t / steps - 0.05) / 0.95)


class Celo2(AdafacMLP):
    """The rule for one tensor, which ``is_matrix`` or not; ``weights`` by the names that our kind
    gives them. Factored moments are those of Adafac-MLP.
    """

    def __init__(
        self, weights: dict[str, Array], shape: tuple[int, ...], is_matrix: bool, turn: bool = True
    ) -> None:
        super().__init__(weights, shape)
        self.is_matrix, self.turn = is_matrix, turn

    def direction(self, p: Array, g: Array) -> Array:
        """The step over its size ``alpha``; moments move on."""
        self.step += 1
        if self.is_matrix:
            g = np.clip(g, -1000.0, 1000.0)
        for i, beta in enumerate(MOMENTUM):
            self.m[i] = beta * self.m[i] + (1 - beta) * g
        self.v = BETA_2 * self.v + (1 - BETA_2) * g * g
        if self.is_matrix:
            u = normalised(self.network(p, g))
            return normalised(orthogonal(u)) if self.turn else u
        m_hat = self.m[0] / (1 - MOMENTUM[0] ** self.step)
        v_hat = self.v / (1 - BETA_2**self.step)
        return 20.0 * m_hat / (np.sqrt(v_hat) + 1e-8)

    def network(self, p: Array, g: Array) -> Array:
        rows, cols, of_gradient, of_momentum = zip(
            *(self.factors(i, g) for i in range(len(FACTORED)))
        )
        root = 1 / np.sqrt(self.v + 1e-6)
        features = [g, np.clip(g, -0.1, 0.1), p, *self.m, self.v, *(m * root for m in self.m), root]
        features += [*(g * f for f in of_gradient), g * root, *rows, *cols]
        features += [1 / np.sqrt(x + 1e-8) for x in (*rows, *cols)]
        features += [m * f for m, f in zip(self.m, of_momentum)]
        assert len(features) == 30
        x = np.stack([normalised(each).reshape(-1) for each in features])
        w = self.weights
        h = np.maximum(w["first"] @ x + w["first_bias"], 0)
        h = np.maximum(w["second"] @ h + w["second_bias"], 0)
        return (w["last"] @ h + w["last_bias"])[0].reshape(self.shape)
