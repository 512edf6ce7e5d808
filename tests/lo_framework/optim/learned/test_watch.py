"""What a watch sees, against plain sums over whole tensors, and the compiled one against torch."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lo_framework.native import toolchain
from lo_framework.optim.learned.memory import lying
from lo_framework.optim.learned.watch import LINE, SAMPLE, Watch
from tests.lo_framework.optim.tools import generator

SHAPES = [(3, 5), (7,), (130, 64), (1,), (2, SAMPLE)]


def model(seed: int = 0) -> list[nn.Parameter]:
    g = generator(seed)
    return [nn.Parameter(torch.randn(shape, generator=g)) for shape in SHAPES]


def with_gradients(params: list[nn.Parameter], seed: int) -> None:
    g = generator(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=g)


@pytest.fixture(params=["compiled", "torch"])
def way(request: pytest.FixtureRequest) -> str:
    if request.param == "compiled" and toolchain.reason():
        pytest.skip(toolchain.reason())
    return request.param


def looks(way: str, steps: int = 4) -> list[torch.Tensor]:
    params = model()
    out = []
    with torch.no_grad():
        watch = Watch(params)
        for step in range(steps):
            active = (0, 1, 2, 3, 4) if step != 2 else (0, 2, 4)
            with_gradients(params, step + 1)
            where = lying([params[i] for i in active]) if way == "compiled" else None
            out.append(watch.look(active, where).clone())
            for i in active:
                params[i].sub_(0.1 * params[i].grad)  # type: ignore[operator]
            watch.follow(active)
            if step == 0:
                params[0].add_(1.0)  # by somebody else
    return out


def test_compiled_and_plain_are_one() -> None:
    if toolchain.reason():
        pytest.skip(toolchain.reason())
    for a, b in zip(looks("compiled"), looks("torch")):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)


def test_sums_of_small_tensors_are_those_of_all_their_numbers(way: str) -> None:
    first, second = looks(way, 2)
    with_gradients(before := model(), 1)
    with_gradients(now := model(), 2)
    pairs = [(-0.1 * a.grad, b.grad) for a, b in zip(before, now)]  # type: ignore[operator]

    def whole(places: list[int]) -> list[float]:
        chosen = [pairs[i] for i in places]
        return [
            float(sum((m * g).sum() for m, g in chosen)),
            float(sum(g.abs().sum() for _, g in chosen)),
            float(sum((m * m).sum() for m, _ in chosen)),
        ]

    assert first[[0, 2, 3]].tolist() == [0.0, 0.0, 0.0]
    assert float(first[1]) == pytest.approx(float(first[4]))
    assert float(second[3]) == pytest.approx(15.0)  # what somebody else did, squared
    assert float(second[4]) == pytest.approx(float(first[4]))
    exact = whole([0, 1, 2, 3, 4])
    assert float(second[1]) == pytest.approx(exact[1], rel=0.15)  # two tensors are sampled
    assert float(second[2]) == pytest.approx(exact[2], rel=0.3)
    assert float(second[5]) == sum(p.numel() for p in model())
    with torch.no_grad():
        few = [p for p in model() if p.numel() <= SAMPLE]
        watch = Watch(few)
        with_gradients(few, 1)
        everything = tuple(range(len(few)))
        where = lying(few) if way == "compiled" else None
        watch.look(everything, where)
        for p in few:
            p.sub_(0.1 * p.grad)  # type: ignore[operator]
        watch.follow(everything)
        with_gradients(few, 2)
        sums = watch.look(everything, lying(few) if where else None)
        before = [p for p in model() if p.numel() <= SAMPLE]
        with_gradients(before, 1)
        plain = sum(float((-0.1 * a.grad * b.grad).sum()) for a, b in zip(before, few))  # type: ignore[operator]
    assert float(sums[0]) == pytest.approx(plain, rel=1e-4)


def test_a_sample_lies_in_all_columns() -> None:
    matrix = nn.Parameter(torch.arange(64.0).repeat(1024, 1))
    watch = Watch([matrix])
    assert len(watch.old) <= SAMPLE and set(watch.old.tolist()) == set(range(64))


@pytest.mark.parametrize("numel", [1, LINE, SAMPLE - 1, SAMPLE + 3, 10 * SAMPLE + 5, 99991])
def test_compiled_and_plain_look_at_the_same_numbers(numel: int) -> None:
    if toolchain.reason():
        pytest.skip(toolchain.reason())
    looked = []
    for compiled in (True, False):
        p = nn.Parameter(torch.arange(float(numel)))
        p.grad = torch.ones(numel)
        with torch.no_grad():
            watch = Watch([p])
            p.add_(7.0)
            watch.look((0,), lying([p]) if compiled else None)
            p.add_(0.5)
            watch.follow((0,))
        looked.append((watch.old.clone(), watch.move.clone()))
    assert torch.equal(looked[0][0], looked[1][0]) and torch.equal(looked[0][1], looked[1][1])
    assert set(looked[0][1].tolist()) == {0.5} and len(looked[0][0]) <= SAMPLE
    assert len(set(looked[0][0].tolist())) == min(numel, len(looked[0][0]))


def test_where_tensors_lie_is_known_of_float32_side_by_side_alone() -> None:
    if toolchain.reason():
        pytest.skip(toolchain.reason())
    params = model()
    with_gradients(params, 1)
    found = lying(params)
    assert found is not None and list(found.params) == [p.data_ptr() for p in params]
    assert list(found.grads) == [p.grad.data_ptr() for p in params]  # type: ignore[union-attr]
    odd = nn.Parameter(torch.ones(4, 6).t())
    odd.grad = torch.ones_like(odd)
    half = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    half.grad = torch.ones_like(half)
    turned = nn.Parameter(torch.ones(6, 4))
    turned.grad = torch.ones(4, 6).t()
    for other in (odd, half, turned, nn.Parameter(torch.ones(3))):
        assert lying([*params, other]) is None


def test_the_first_gradient_of_a_tensor_is_the_first_that_is_not_zero(way: str) -> None:
    params = model()[:2]
    with torch.no_grad():
        watch = Watch(params)
        for size, expected in ((0.0, 7.0), (2.0, 37.0), (9.0, 37.0)):
            params[0].grad = torch.full_like(params[0], size)
            params[1].grad = torch.full_like(params[1], 1.0 + size)
            where = lying(params) if way == "compiled" else None
            assert float(watch.look((0, 1), where)[4]) == expected


def test_half_precision_and_views() -> None:
    wide = nn.Parameter(torch.ones(8, 6, dtype=torch.bfloat16).t())
    watch = Watch([wide])
    wide.grad = torch.ones_like(wide)
    with torch.no_grad():
        watch.look((0,))
        wide.add_(1.0)
        watch.follow((0,))
    assert watch.look((0,)).tolist() == [48.0, 48.0, 48.0, 0.0, 48.0, 48.0]
