"""Published learned optimizers written down slowly, one tensor at a time, in float64 numpy.

Adafac-MLP: Metz et al. 2022, as its authors' code computes it. ``version=1`` departs from it where
our first feature version did.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray
MOMENTUM = (0.9, 0.99, 0.999)
SECOND = 0.999
FACTORED = (0.9, 0.99, 0.999)
SCALES = np.array([1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5])


def safe_rsqrt(x: Array) -> Array:
    return 1 / np.sqrt(np.maximum(x, 1e-9))


class AdafacMLP:
    """The rule for one tensor; ``weights`` by the names that our ``mlp:features=39`` gives them."""

    def __init__(self, weights: dict[str, Array], shape: tuple[int, ...], version: int = 2) -> None:
        self.weights, self.shape, self.version, self.step = weights, shape, version, 0
        self.m = [np.zeros(shape) for _ in MOMENTUM]
        self.v = np.zeros(shape)
        self.row = [0.0] * len(FACTORED)
        self.col = [0.0] * len(FACTORED)

    def factors(self, i: int, g: Array) -> tuple[Array, Array, Array, Array]:
        """Row and column second moments, and the factors of gradient and momentum."""
        square, keep = g * g + 1e-30, 1 - FACTORED[i]
        if len(self.shape) < 2:
            self.row[i] = self.col[i] = v = self.row[i] + keep * (square - self.row[i])
            momentum = 1 / np.sqrt(v + 1e-6)
            return v, v, momentum if self.version == 1 else safe_rsqrt(v + 1e-9), momentum
        second, largest = np.argsort(self.shape, kind="stable")[-2:]
        over = (largest, second) if self.version > 1 else (second, largest)
        means = [np.broadcast_to(square.mean(axis, keepdims=True), self.shape) for axis in over]
        self.row[i] = row = self.row[i] + keep * (means[0] - self.row[i])
        self.col[i] = col = self.col[i] + keep * (means[1] - self.col[i])
        mean = row.mean(second, keepdims=True) if self.version > 1 else row.mean()
        factor = safe_rsqrt(row / (mean + 1e-9)) * safe_rsqrt(col)
        return row, col, factor, factor

    def update(self, p: Array, g: Array) -> Array:
        for i, decay in enumerate(MOMENTUM):
            self.m[i] = decay * self.m[i] + (1 - decay) * g
        self.v = SECOND * self.v + (1 - SECOND) * g * g
        rows, cols, of_gradient, of_momentum = zip(
            *(self.factors(i, g) for i in range(len(FACTORED)))
        )
        root = 1 / np.sqrt(self.v + 1e-6)
        features = [g, p, *self.m, self.v, *(m * root for m in self.m), root]
        features += [g * f for f in of_gradient]
        features += [*rows, *cols]
        features += [1 / np.sqrt(x + 1e-8) for x in (*rows, *cols)]
        features += [m * f for m, f in zip(self.m, of_momentum)]
        x = np.stack(features).reshape(len(features), -1)
        x = x / np.sqrt(1e-5 + (x * x).mean(1, keepdims=True))
        time = np.tanh(self.step / SCALES - 1)
        self.step += 1
        w = self.weights
        bias = w["first_bias"] + w["first_time"] @ time
        h = np.maximum(w["first"] @ x + bias[:, None], 0)
        h = np.maximum(w["second"] @ h + w["second_bias"], 0)
        direction, magnitude = w["last"] @ h + w["last_bias"]
        return p - (direction * np.exp(magnitude * 1e-3) * 1e-3).reshape(self.shape)
