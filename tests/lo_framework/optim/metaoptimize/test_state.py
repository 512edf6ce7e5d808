"""MetaOptimize's state: resumed to the same bits, and refused in one line where it is of something
else.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lo_framework.optim import MetaOptimize
from lo_framework.spec import UserError
from tests.lo_framework.optim.metaoptimize import tools
from tests.lo_framework.optim.metaoptimize.reference import BASES, METAS, D


@pytest.mark.parametrize("blocks", tools.BLOCKS, ids=str)
@pytest.mark.parametrize("meta", METAS)
@pytest.mark.parametrize("base", BASES)
def test_every_pair_runs_and_resumes_to_the_same_bits(base: str, meta: str, blocks: Any) -> None:
    tools.check_resume(torch.float32, base=base, meta=meta, blocks=blocks, gamma=0.9, meta_every=2)


@pytest.mark.parametrize("products", ["joint", "per-block"])
@pytest.mark.parametrize("trace", ["l", "2x2"])
@pytest.mark.parametrize("base", ["sgd", "sgdm", "adamw", "lion"])
def test_exact_traces_resume_to_the_same_bits(base: str, trace: str, products: str) -> None:
    for blocks in ("scalar", "node", tools.NAMED):
        tools.check_resume(D, base=base, meta="adam", blocks=blocks, trace=trace, products=products)


def test_full_trace_resumes_to_the_same_bits() -> None:
    tools.check_resume(D, base="sgd", meta="sgd", trace="full", gamma=0.9)


def test_is_saved_by_its_state_only() -> None:
    optimizer = tools.make(tools.parameters())
    for copier in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="copied and saved through state_dict"):
            copier(optimizer)


def rejected(optimizer: MetaOptimize, call: Any, words: str) -> None:
    """``call`` is refused in one line and leaves the optimizer as it was."""
    before = tools.snapshot(optimizer)
    with pytest.raises(UserError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value) and tools.snapshot(optimizer) == before


OTHERS = [
    ({"base": "lion"}, r'of another base \("lion", not "adamw"\)'),
    ({"meta": "adam"}, r'of another meta \("adam"'),
    ({"blocks": "tensor"}, "of other blocks or parameters"),
    ({"trace": "2x2"}, r'of another trace \("2x2, joint"'),
]


@pytest.mark.parametrize(("options", "words"), OTHERS)
def test_state_of_another_kind_is_refused(options: dict[str, Any], words: str) -> None:
    params = tools.parameters()
    other = tools.make(params, **options)
    tools.run(other, params, range(2))
    optimizer = tools.make(params)
    tools.run(optimizer, params, range(2))
    rejected(optimizer, lambda: optimizer.load_state_dict(other.state_dict()), words)


def test_state_of_other_classes_and_parameters_is_refused() -> None:
    params = tools.parameters()
    optimizer = tools.make(params)
    tools.run(optimizer, params, range(2))
    adamw = torch.optim.AdamW(params)
    rejected(
        optimizer, lambda: optimizer.load_state_dict(adamw.state_dict()), "another optimizer class"
    )
    others = tools.parameters(shapes=[(3, 2), (3,), (1,), (2, 2, 3)])
    wrong = tools.make(others)
    tools.run(wrong, others, range(1))
    message = r"of other parameters: parameter 2 has shape \(\), its .* has \(1,\)"
    rejected(optimizer, lambda: optimizer.load_state_dict(wrong.state_dict()), message)


def test_bad_steps_are_refused() -> None:
    params = tools.parameters()
    exact = tools.make(params, "sgd", "sgd", trace="2x2")
    tools.run(exact, params, range(2))
    grads = [p.grad for p in params]
    rejected(
        exact,
        lambda: exact.step(),
        'trace "2x2" needs a closure that returns the loss without calling backward',
    )

    def backward() -> Tensor:
        exact.zero_grad()
        loss = tools.loss_of(params, 0)
        loss.backward()
        return loss

    rejected(exact, lambda: exact.step(backward), "it called backward without create_graph")
    rejected(exact, lambda: exact.step(lambda: 1.0), "needs a closure that returns the loss")
    assert all(p.grad is g for p, g in zip(params, grads))
    plain = tools.make(params)
    params[0].grad = torch.zeros(3, 2, dtype=D).to_sparse()
    rejected(plain, lambda: plain.step(), "cannot use sparse gradients")
    more = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
    rejected(plain, lambda: plain.add_param_group({"params": [more]}), "complex parameters")
    assert len(plain.param_groups) == 1
