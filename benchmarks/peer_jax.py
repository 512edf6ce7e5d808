"""The 19-feature learned optimizer in plain JAX: the same work by jit, vmap and scan.

    python -m benchmarks.peer_jax          # seconds of a PES and of a TBPTT gradient

It is what one would write in JAX for one experiment: 8 tasks (an antithetic pair each for PES), an
unroll of 20 steps in one ``scan``, batches drawn inside, nothing masked. `meta_throughput` runs it
in a process of its own, on one core; the package ``jax`` is in the extra ``bench``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

MOMENTA = (0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
TIMES = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
ONE_CORE = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


def build(
    spec: str, unroll: int, tasks: int, hidden: int = 32, sigma: float = 0.01
) -> Callable[[], Any]:
    """A meta-gradient of ``spec`` ("pes" or "tbptt") as a function without arguments."""
    os.environ["XLA_FLAGS"] = ONE_CORE
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import jax
    import jax.numpy as jnp
    from sklearn.datasets import load_digits

    data = load_digits()
    images = jnp.asarray(data.data[:1300] / 16.0, jnp.float32)
    labels = jnp.asarray(data.target[:1300])
    shapes = ((hidden, 64), (hidden,), (10, hidden), (10,))
    keep = 1 - jnp.asarray(MOMENTA)[:, None]
    scales = jnp.asarray(TIMES)

    def inner_loss(params: Any, x: Any, y: Any) -> Any:
        w1, b1, w2, b2 = params
        logits = jax.nn.sigmoid(x @ w1.T + b1) @ w2.T + b2
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1).mean()

    def update(theta: Any, p: Any, g: Any, momenta: Any, step: Any) -> Any:
        first, time_part, b1, second, b2, last, b3 = theta
        shape, p, g = p.shape, p.reshape(-1), g.reshape(-1)
        momenta = momenta + keep * (g - momenta)
        raw = jnp.concatenate([g[None], p[None], momenta])
        x = raw * jax.lax.rsqrt(1e-5 + (raw * raw).mean(1, keepdims=True))
        bias = b1 + time_part @ jnp.tanh(step / scales - 1.0)
        h = jax.nn.relu(first @ x + bias[:, None])
        h = jax.nn.relu(second @ h + b2)
        direction, magnitude = last @ h + b3
        return (p - direction * jnp.exp(magnitude * 1e-3) * 1e-3).reshape(shape), momenta

    def score(theta: Any, params: Any, key: Any) -> Any:
        state = tuple(jnp.zeros((len(MOMENTA), p.size)) for p in params)

        def step(carry: Any, i: Any) -> Any:
            params, state = carry
            rows = jax.random.randint(jax.random.fold_in(key, i), (64,), 0, len(labels))
            loss, grads = jax.value_and_grad(inner_loss)(params, images[rows], labels[rows])
            moved = [
                update(theta, p, g, m, i.astype(jnp.float32))
                for p, g, m in zip(params, grads, state)
            ]
            return (tuple(p for p, _ in moved), tuple(m for _, m in moved)), loss

        _, losses = jax.lax.scan(step, (params, state), jnp.arange(unroll))
        return losses.mean() / jnp.log(10.0)

    key = jax.random.key(0)
    fan = (19, 19, 0, 32, 0, 32, 0)
    sizes = ((32, 8), (32, 11), (32,), (32, 32), (32, 1), (2, 32), (2, 1))
    theta = tuple(
        jax.random.normal(jax.random.fold_in(key, i), shape) * (f**-0.5 if f else 0.0)
        for i, (shape, f) in enumerate(zip(sizes, fan))
    )
    starts = tuple(
        0.1 * jax.random.normal(jax.random.fold_in(key, 50 + i), (tasks, *shape))
        for i, shape in enumerate(shapes)
    )

    def tbptt(theta: Any, starts: Any, keys: Any) -> Any:
        mean = lambda theta: jax.vmap(score, (None, 0, 0))(theta, starts, keys).mean()  # noqa: E731
        return jax.grad(mean)(theta)

    def pes(theta: Any, starts: Any, keys: Any) -> Any:
        def pair(start: Any, key: Any) -> Any:
            noise = tuple(
                sigma * jax.random.normal(jax.random.fold_in(key, 100 + i), x.shape)
                for i, x in enumerate(theta)
            )
            both = tuple(jnp.stack([x + n, x - n]) for x, n in zip(theta, noise))
            plus, minus = jax.vmap(score, (0, None, None))(both, start, key)
            return tuple((plus - minus) / (2 * sigma**2) * n for n in noise)

        found = jax.vmap(pair)(starts, keys)
        return tuple(x.mean(0) for x in found)

    compiled = jax.jit(pes if spec == "pes" else tbptt)
    count = 0

    def run() -> Any:
        nonlocal count
        count += 1
        keys = jax.random.split(jax.random.fold_in(key, count), tasks)
        return jax.block_until_ready(compiled(theta, starts, keys))

    return run


def main() -> None:
    for spec, copies in (("pes", 2), ("tbptt", 1)):
        run = build(spec, 20, 8)
        run()
        seconds = []
        for _ in range(12):
            begun = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - begun)
        print(f"{spec}: {8 * 20 * copies / min(seconds):,.0f} inner steps/s")


if __name__ == "__main__":
    main()
