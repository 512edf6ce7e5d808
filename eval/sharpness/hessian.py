"""The spectrum of the Hessian, and of its Gauss-Newton part: top eigenvalues, trace, density.

    hessian = hessian_operator(surface)
    top = top_eigenvalues(hessian, 3)              # .values, .vectors, .residuals
    trace(hessian).value, spectral_density(hessian).density

Estimators come from curvlinops (Dangel et al. 2025, arXiv 2501.19183) and ARPACK (scipy's eigsh, a
Lanczos iteration with full reorthogonalisation). The matrix itself is ours, not curvlinops'
operator for modules: it is the Hessian of the very loss that all other measures see, for any task,
exact for every size of the sample.

All linear algebra runs in float64 on the CPU, whatever the surface computes in: a random draw is
then the same on every device, and only the products carry float32 errors.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lo_framework.eval.sharpness.measures import Mean
from lo_framework.eval.sharpness.surface import Surface
from lo_framework.eval.statistics import Array
from lo_framework.optimizees.task import ClassificationTask
from lo_framework.optional import require

Product = Callable[[Tensor], Tensor]  # v [N] to A v [N], in the surface's type
# up to this many parameters the matrix is written out: Lanczos needs more dimensions than steps
DENSE_LIMIT = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class Eigenpairs:
    """Eigenpairs: ``values [k]`` in descending order, ``vectors [k, N]`` of length 1, ``residuals
    [k]`` = ``||A v - lambda v||``.

    A residual bounds the distance to the nearest true eigenvalue.
    """

    values: Array
    vectors: Tensor
    residuals: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class Spectrum:
    """A spectrum: ``density [points]`` over ``grid [points]``: ``1/N sum_i delta(t - lambda_i)``,
    smoothed; integrates to 1.
    """

    grid: Array
    density: Array

    @property
    def integral(self) -> float:
        return float(((self.density[1:] + self.density[:-1]) / 2 * np.diff(self.grid)).sum())


def hessian_operator(surface: Surface, at: Tensor | None = None) -> Any:
    """Return the Hessian at ``at`` (default: the surface's point) as an operator of curvlinops."""
    point = surface.params if at is None else at
    return _operator(lambda v: surface.hvp(point, v)[1], surface)


def ggn_operator(surface: Surface) -> Any | None:
    """The generalised Gauss-Newton matrix (Schraudolph 2002), positive semi-definite; for
    cross-entropy the Fisher.

    ``J^T (diag(p) - p p^T) J / rows`` with the Jacobian J of the logits. None if the task is not a
    classifier whose logits we know: a task's loss alone does not say where its network ends.
    """
    task = surface.task
    if not isinstance(task, ClassificationTask):
        return None

    def product(v: Tensor) -> Tensor:
        surface.used.hvps += 1
        total = torch.zeros_like(v)
        for share, (x, *_) in surface.passes():
            flat = surface.params.detach().requires_grad_()
            logits, _ = task.model.apply(surface.layout.unflatten(flat), surface.buffers, x)
            # J v by two reverse passes, as J^T w is linear in w: forward mode lacks rules for some
            # operations.
            w = torch.zeros_like(logits, requires_grad=True)
            (back,) = torch.autograd.grad(logits, flat, w, create_graph=True)
            (along,) = torch.autograd.grad(back, w, v, retain_graph=True)
            p = logits.detach().softmax(-1)
            inner = p * (along - (p * along).sum(-1, keepdim=True)) / len(x)
            (part,) = torch.autograd.grad(logits, flat, inner)
            total += share * part
        return total

    return _operator(product, surface)


def top_eigenvalues(operator: Any, k: int = 1, *, tol: float = 1e-6, seed: int = 0) -> Eigenpairs:
    """Return the ``k`` algebraically largest eigenvalues.

    Args:
        tol: relative accuracy at which Lanczos stops; in float32 the products end at some 1e-6
            themselves.

    Raises:
        FloatingPointError: a product is not finite, or Lanczos does not converge.
    """
    size = operator.shape[0]
    k = min(k, size)
    if size <= max(DENSE_LIMIT, k + 1):
        values, vectors = np.linalg.eigh(_dense(operator))
        values, vectors = values[-k:], vectors[:, -k:]
    else:
        values, vectors = _lanczos(operator, k, "LA", tol, seed)
    order = np.argsort(values)[::-1]
    values, vectors = values[order], vectors[:, order]
    products = np.stack([_times(operator, vectors[:, i]) for i in range(k)], axis=1)
    residuals = np.linalg.norm(products - vectors * values, axis=0)
    return Eigenpairs(
        values=values, vectors=torch.from_numpy(vectors.T.copy()), residuals=residuals
    )


def trace(operator: Any, probes: int = 100, *, seed: int = 0) -> Mean:
    """Hutchinson's estimate from Rademacher probes, with its standard error; exact where ``probes``
    reach N.
    """
    size = operator.shape[0]
    if probes >= size:
        return Mean(value=float(np.trace(_dense(operator))), stderr=0.0, n=size)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        values = torch.stack([_curvlinops().hutchinson_trace(operator, 1) for _ in range(probes)])
    if not torch.isfinite(values).all():
        raise FloatingPointError("trace: a Hessian product is not finite")
    return Mean.of(values)


def spectral_density(
    operator: Any, *, probes: int = 10, steps: int = 80, points: int = 1024, seed: int = 0
) -> Spectrum:
    """Stochastic Lanczos quadrature (Papyan 2020, algorithm 2; Ghorbani et al. 2019), smoothed by
    some range / steps.

    Costs ``probes * steps`` products and some for the ends of the spectrum.

    Raises:
        FloatingPointError: a product is not finite, or the matrix is zero (its density is a point).
    """
    size = operator.shape[0]
    if size <= DENSE_LIMIT:
        low, high = (float(x) for x in np.linalg.eigvalsh(_dense(operator))[[0, -1]])
    else:
        low, high = (
            float(_lanczos(operator, 1, which, 1e-2, seed)[0][0]) for which in ("SA", "LA")
        )
    if high <= low:
        raise FloatingPointError("spectral density: all eigenvalues are one")
    steps = max(2, min(steps, size))
    # curvlinops' Gaussians on a spectrum of length 2; the margin holds three sigma of those at its
    # ends.
    spread = 3 * 2 / (steps - 1) / math.sqrt(8 * math.log(3))
    margin = max(0.05, spread / 2 / max(0.2, 1 - spread))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        found = _curvlinops().lanczos_approximate_spectrum(
            operator,
            steps,
            num_points=points,
            num_repeats=probes,
            boundaries=(low, high),
            margin=margin,
        )
    grid, density = (x.numpy() for x in found)
    if not np.isfinite(density).all():
        raise FloatingPointError("spectral density: the Lanczos iteration broke down")
    return Spectrum(grid=grid, density=density)


def _operator(product: Product, surface: Surface) -> Any:
    # What all of curvlinops' routines take; the base class itself is not exported.
    base: Any = _curvlinops()._torch_base.PyTorchLinearOperator

    class Matrix(base):
        """Symmetric ``[N, N]``, float64 on the CPU, given by its products with vectors."""

        SELF_ADJOINT = True
        device = torch.device("cpu")
        dtype = torch.float64

        def __init__(self) -> None:
            super().__init__([(surface.size,)], [(surface.size,)])

        def _matmat(self, columns: list[Tensor]) -> list[Tensor]:
            products = [product(v.to(surface.params)).to(columns[0]) for v in columns[0].unbind(1)]
            return [torch.stack(products, 1)]

    return Matrix()


def _curvlinops() -> Any:
    """The package, imported when first needed and without the deprecation warnings of its
    dependencies.
    """
    require("curvlinops")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module("curvlinops")


def _times(operator: Any, v: Array) -> Array:
    return (operator @ torch.from_numpy(np.ascontiguousarray(v, dtype=np.float64))).numpy()


def _dense(operator: Any) -> Array:
    """The whole matrix ``[N, N]``, made exactly symmetric.

    Raises:
        FloatingPointError: it is not finite.
    """
    matrix = (operator @ torch.eye(operator.shape[0], dtype=torch.float64)).numpy()
    if not np.isfinite(matrix).all():
        raise FloatingPointError("a Hessian product is not finite")
    return (matrix + matrix.T) / 2


def _lanczos(operator: Any, k: int, which: str, tol: float, seed: int) -> tuple[Array, Array]:
    require("scipy")
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    def matvec(v: Array) -> Array:
        product = _times(operator, v.reshape(-1))
        if not np.isfinite(product).all():
            raise FloatingPointError("a Hessian product is not finite")
        return product

    matrix = LinearOperator(operator.shape, matvec=matvec, dtype=np.float64)
    start = np.random.default_rng(seed).standard_normal(operator.shape[0])
    try:
        return eigsh(matrix, k=k, which=which, tol=tol, v0=start)
    except ArpackError as error:  # ArpackNoConvergence is one
        raise FloatingPointError(
            f"the Lanczos iteration for eigenvalues failed: {error}"
        ) from error
