"""The spectrum of the Hessian, and of its Gauss-Newton part: top eigenvalues, trace, density.

    hessian = hessian_operator(surface)
    top = top_eigenvalues(hessian, 3)              # .values, .vectors, .residuals
    trace(hessian).value, spectral_density(hessian).density

Eigenvalues come from ARPACK (scipy's eigsh, a Lanczos iteration with full reorthogonalisation). The
matrix is the Hessian of the very loss that all other measures see, for any task, exact for every
size of the sample.

All linear algebra runs in float64 on the CPU, whatever the surface computes in: a random draw is
then the same on every device, and only the products carry float32 errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

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
class Matrix:
    """A symmetric matrix ``[size, size]``, given by its products with vectors."""

    size: int
    product: Product

    def __matmul__(self, v: Tensor) -> Tensor:
        """Return the product with ``v [size]``, float64 on the CPU as ``v`` is.

        Raises:
            FloatingPointError: it is not finite.
        """
        found = self.product(v)
        if not torch.isfinite(found).all():
            raise FloatingPointError("a Hessian product is not finite")
        return found

    def dense(self) -> Array:
        """The whole matrix, made exactly symmetric."""
        rows = [self @ row for row in torch.eye(self.size, dtype=torch.float64)]
        found = torch.stack(rows).numpy()
        return (found + found.T) / 2


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


def hessian_operator(surface: Surface, at: Tensor | None = None) -> Matrix:
    """Return the Hessian at ``at`` (default: the surface's point)."""
    point = surface.params if at is None else at
    return _matrix(lambda v: surface.hvp(point, v)[1], surface)


def ggn_operator(surface: Surface) -> Matrix | None:
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

    return _matrix(product, surface)


def top_eigenvalues(
    operator: Matrix, k: int = 1, *, tol: float = 1e-6, seed: int = 0
) -> Eigenpairs:
    """Return the ``k`` algebraically largest eigenvalues.

    Args:
        tol: relative accuracy at which Lanczos stops; in float32 the products end at some 1e-6
            themselves.

    Raises:
        FloatingPointError: a product is not finite, or Lanczos does not converge.
    """
    k = min(k, operator.size)
    if operator.size <= max(DENSE_LIMIT, k + 1):
        values, vectors = np.linalg.eigh(operator.dense())
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


def trace(operator: Matrix, probes: int = 100, *, seed: int = 0) -> Mean:
    """Hutchinson's estimate ``v^T A v`` from Rademacher probes v (Hutchinson 1989), with its
    standard error; exact where ``probes`` reach N.

    Raises:
        FloatingPointError: a product is not finite.
    """
    size = operator.size
    if probes >= size:
        return Mean(value=float(np.trace(operator.dense())), stderr=0.0, n=size)
    generator = torch.Generator().manual_seed(seed)
    signs = torch.empty(size, dtype=torch.float64)
    values = []
    for _ in range(probes):
        v = signs.bernoulli_(0.5, generator=generator) * 2 - 1
        values.append(v @ (operator @ v))
    return Mean.of(torch.stack(values))


def spectral_density(
    operator: Matrix, *, probes: int = 10, steps: int = 80, points: int = 1024, seed: int = 0
) -> Spectrum:
    """Stochastic Lanczos quadrature (Papyan 2020, algorithm 2, JMLR 21; Ghorbani et al. 2019):
    the mean over probes of their nodes, each a Gaussian of a width of some range / steps.

    Costs ``probes * steps`` products and some for the ends of the spectrum.

    Raises:
        FloatingPointError: a product is not finite, or the matrix is zero (its density is a point).
    """
    size = operator.size
    if size <= DENSE_LIMIT:
        low, high = (float(x) for x in np.linalg.eigvalsh(operator.dense())[[0, -1]])
    else:
        low, high = (
            float(_lanczos(operator, 1, which, 1e-2, seed)[0][0]) for which in ("SA", "LA")
        )
    if high <= low:
        raise FloatingPointError("spectral density: all eigenvalues are one")
    steps = max(2, min(steps, size))
    # Papyan's width, at which neighbours among `steps` nodes of an interval of length 2 meet at a
    # third of their height; the margin holds three of them beyond the ends of the spectrum.
    sigma = 2 / (steps - 1) / math.sqrt(8 * math.log(3))
    margin = (high - low) * max(0.05, 3 * sigma / 2 / max(0.2, 1 - 3 * sigma))
    grid = torch.linspace(low - margin, high + margin, points, dtype=torch.float64)
    sigma *= float(grid[-1] - grid[0]) / 2
    generator = torch.Generator().manual_seed(seed)
    density = torch.zeros_like(grid)
    for _ in range(probes):
        nodes, weights = quadrature(operator, steps, generator)
        density += weights @ torch.exp(-(((grid - nodes[:, None]) / sigma) ** 2) / 2)
    density /= probes * sigma * math.sqrt(2 * math.pi)
    return Spectrum(grid=grid.numpy(), density=density.numpy())


def quadrature(operator: Matrix, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return nodes and weights, at most ``[steps]`` each, of the spectrum as a random direction v
    sees it: ``v^T f(A) v = sum_i weight_i f(node_i)`` for polynomials f of a degree below twice
    their number (Golub & Welsch 1969).

    Lanczos without reorthogonalisation: an eigenvalue that is found again shares its weight out.
    """
    v = torch.randn(operator.size, generator=generator, dtype=torch.float64)
    v /= torch.linalg.vector_norm(v)
    before, diagonal, beside = torch.zeros_like(v), [], [0.0]
    for _ in range(steps):
        following = operator @ v - beside[-1] * before
        diagonal.append(float(following @ v))
        following -= diagonal[-1] * v
        beside.append(float(torch.linalg.vector_norm(following)))
        if not beside[-1]:  # v lies in what few eigenvectors span: these are all
            break
        before, v = v, following / beside[-1]
    middle, side = (torch.tensor(x, dtype=torch.float64) for x in (diagonal, beside[1:-1]))
    nodes, vectors = torch.linalg.eigh(middle.diag() + side.diag(1) + side.diag(-1))
    return nodes, vectors[0] ** 2


def _matrix(product: Product, surface: Surface) -> Matrix:
    """The matrix of products in the surface's own type and on its device."""
    return Matrix(size=surface.size, product=lambda v: product(v.to(surface.params)).to(v))


def _times(operator: Matrix, v: Array) -> Array:
    return (operator @ torch.from_numpy(np.ascontiguousarray(v, dtype=np.float64))).numpy()


def _lanczos(operator: Matrix, k: int, which: str, tol: float, seed: int) -> tuple[Array, Array]:
    require("scipy")
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    shape = (operator.size, operator.size)
    matrix = LinearOperator(
        shape, matvec=lambda v: _times(operator, v.reshape(-1)), dtype=np.float64
    )
    start = np.random.default_rng(seed).standard_normal(operator.size)
    try:
        return eigsh(matrix, k=k, which=which, tol=tol, v0=start)
    except ArpackError as error:  # ArpackNoConvergence is one
        raise FloatingPointError(
            f"the Lanczos iteration for eigenvalues failed: {error}"
        ) from error
