"""The columnwise methods of a learned optimizer as kernels (`native.columns`).

A rule with kernels is a copy that shares its meta-parameters: what it computes is what the rule
computes, up to rounding. A method that no kernel can be written for runs as it is.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from lo_framework.errors import UserError
from lo_framework.native import toolchain
from lo_framework.native.columns import columnwise
from lo_framework.native.nodes import WIDTH
from lo_framework.native.program import JOINED, PROGRAMS, Program

State = dict[str, Tensor]
L = TypeVar("L", bound=nn.Module)
# By class and configuration, which decide on what a rule computes with given meta-parameters: a run
# on problems that vary makes the same rule again and again.
_KERNELS: dict[tuple[Any, ...], Kernels] = {}


def with_kernels(learned: L) -> L:
    """The same rule with kernels; the meta-parameters are shared.

    Raises:
        UserError: nothing can be compiled here.
    """
    if _device(learned).type == "cpu" and toolchain.reason():
        raise UserError(f"kernels need a C compiler: {toolchain.reason()}")
    other: Any = copy.copy(learned)
    other.kernels = kernels_of(learned)
    other._modules = {  # a rule around another one
        name: with_kernels(child) if hasattr(child, "in_kernel") else child  # type: ignore[type-var]
        for name, child in learned._modules.items()
    }
    return other


def _device(rule: Any) -> torch.device:
    return next((x.device for x in (*rule.parameters(), *rule.buffers())), torch.device("cpu"))


def identity(rule: Any) -> tuple[Any, ...]:
    """All that decides on what a rule computes with given meta-parameters, and where."""
    inner = tuple(identity(child) for child in rule.children() if hasattr(child, "in_kernel"))
    constants = tuple(x.detach().cpu().numpy().tobytes() for x in rule.buffers())
    key = (type(rule), rule.config, constants, inner, _device(rule))
    try:
        hash(key)
    except TypeError:  # a plugin's own, which is not frozen
        return (type(rule), repr(rule.config), *key[2:])
    return key


def kernels_of(rule: Any) -> Kernels:
    """Those of all rules with this `identity`."""
    key = identity(rule)
    if key not in _KERNELS:
        _KERNELS[key] = Kernels(rule, len(_KERNELS))
    return _KERNELS[key]


class Kernels:
    """Kernels of the columnwise methods of ``rule``, made when they are first needed."""

    def __init__(self, rule: Any, number: int) -> None:
        inner = copy.deepcopy(rule).requires_grad_(False)
        inner.kernels, inner.in_kernel = None, True
        self.methods = _Methods(inner)
        self.key = f"{type(rule).__qualname__} {number}"
        self.recipes: dict[Any, Recipe | None] = {}

    def __deepcopy__(self, memo: Any) -> Kernels:
        return self  # what it makes depends on the rule's class and settings alone

    def each(
        self,
        rule: Any,
        method: str,
        layout: Any,
        channels: Tensor,
        shared: Sequence[Tensor],
        columns: State,
    ) -> State | None:
        """What ``method`` gives for all tensors of the layout; None where it has no kernel."""
        return self._run(rule, method, layout.sizes, channels, shared, columns, means=False)

    def means(
        self,
        rule: Any,
        method: str,
        layout: Any,
        shared: Sequence[Tensor],
        columns: State,
    ) -> Tensor | None:
        """The means over each tensor of what ``method`` gives; None where it has no kernel."""
        some = next(iter(columns.values()))
        none = some.new_zeros(0, layout.num)
        made = self._run(rule, method, layout.sizes, none, shared, columns, means=True)
        return None if made is None else made["means"]

    def across(
        self, rule: Any, method: str, columns: State, shared: Sequence[Tensor]
    ) -> State | None:
        """What ``method`` gives for S tensors, ``[..., S]``; None where it has no kernel, or where
        there are too many tensors for one.
        """
        some = next(iter(columns.values()))
        if some.shape[-1] > JOINED:
            return None
        none = some.new_zeros(0, 1)
        sizes = [some.shape[-1]]
        return self._run(rule, method, sizes, none, shared, columns, means=False, joined=True)

    def _run(
        self,
        rule: Any,
        method: str,
        sizes: Sequence[int],
        channels: Tensor,
        shared: Sequence[Tensor],
        columns: State,
        *,
        means: bool,
        joined: bool = False,
    ) -> State | None:
        if any(x.dtype != torch.float32 for x in columns.values()):
            return None
        recipe = self.recipe(
            method,
            means,
            len(channels),
            tuple((name, tuple(x.shape[:-1])) for name, x in columns.items()),
            tuple(tuple(x.shape) for x in shared),
            torch.is_grad_enabled(),
            joined,
        )
        if recipe is None:
            return None
        given = [*(p for _, p in rule.named_parameters()), *shared]
        wanted = [given[i] for i in recipe.shared]
        read = [columns[name] for name in recipe.columns]
        outputs, totals = columnwise(recipe.program, wanted, channels, read, sizes)
        if means:
            return {"means": totals[0]}
        made = dict(zip(recipe.outputs, outputs))
        return {name: made[name] if name in made else columns[old] for name, old in recipe.names}

    def sums(
        self, rule: Any, columns: Mapping[str, Sequence[Tensor]], bounds: Tensor
    ) -> Tensor | None:
        """Sums ``[F, S]`` of what the rule measures, of S tensors that lie anywhere on the CPU in
        float32, each contiguous; None where there is no kernel.
        """
        recipe = self.recipe("_measured", True, 0, tuple((name, ()) for name in columns), (), False)
        if recipe is None:
            return None
        rows = [[x.data_ptr() for x in columns[name]] for name in recipe.columns]
        table, parameters = torch.tensor(rows).T.contiguous(), [*rule.parameters()]
        given = [parameters[i].detach().reshape(1, -1) for i in recipe.shared]
        none = torch.empty(0, len(bounds) - 1)
        return recipe.program.forward.over(given, none, bounds, table, table)

    def recipe(self, *key: Any) -> Recipe | None:
        """How to call the kernels of a method for given shapes."""
        if key not in self.recipes:
            try:
                with temporarily_clear_interpreter_stack():  # nothing of a vmap is in it
                    self.recipes[key] = self._make(*key)
            except UserError:
                raise
            except Exception:
                # Whatever no kernel can do: the rule runs as it is, and says what is wrong.
                self.recipes[key] = None
        return self.recipes[key]

    def _make(
        self,
        method: str,
        means: bool,
        channels: int,
        columns: Any,
        shared: Any,
        pulled: bool,
        joined: bool = False,
    ) -> Recipe | None:
        parameters = dict(self.methods.rule.named_parameters())
        count, leads = len(parameters), dict(columns)
        shapes = [*(tuple(p.shape) for p in parameters.values()), *shared]

        def call(given: Sequence[Tensor], channels: Tensor, columns: State) -> Any:
            theta = {f"rule.{name}": x for name, x in zip(parameters, given)}
            before = () if means or joined else (channels,)
            return functional_call(
                self.methods, theta, (method, *before, tuple(given[count:]), columns)
            )

        def flat(*tensors: Tensor) -> list[Tensor]:
            given, narrow, *rows = (tensors[: len(shapes)], *tensors[len(shapes) :])
            made = call(given, narrow, dict(zip(leads, rows)))
            return [made] if means else [made[name] for name in outputs]

        # Which inputs it reads at all, and what it gives back as it got it.
        device = _device(self.methods)
        example = [torch.ones(x, device=device) for x in (*shapes, (channels, 1))]
        rows = {name: torch.ones(*lead, WIDTH, device=device) for name, lead in leads.items()}
        made = call(example[:-1], example[-1], rows)
        if means and not len(made):
            return None
        same = {} if means else {n: o for n, x in made.items() for o, y in rows.items() if x is y}
        outputs = [] if means else [name for name in made if name not in same]
        graph = make_fx(flat)(*example, *rows.values()).graph
        graph.eliminate_dead_code()
        read = [bool(node.users) for node in graph.nodes if node.op == "placeholder"]
        used = [i for i in range(len(shapes)) if read[i]]
        names = [name for name, is_read in zip(leads, read[len(shapes) + 1 :]) if is_read]

        def function(
            given: list[Tensor], channels: Tensor, columns: list[Tensor]
        ) -> tuple[list[Tensor], list[Tensor]]:
            like = columns[0]
            every = [like.new_zeros(x) for x in shapes]
            for i, x in zip(used, given):
                every[i] = x
            rows = {n: like.new_zeros(*lead, like.shape[-1]) for n, lead in leads.items()}
            made = call(every, channels, rows | dict(zip(names, columns)))
            return ([], [made]) if means else ([made[name] for name in outputs], [])

        program = Program(
            f"{self.key} {method} {means} {columns} {shared}",
            function,
            tuple(shapes[i] for i in used),
            channels,
            tuple(leads[name] for name in names),
            joined,
            str(device),
        )
        program = PROGRAMS[program.key]
        if device.type == "cpu":  # elsewhere torch compiles
            _ = program.forward, pulled and program.backward
        every_name = [] if means else [(name, same.get(name, name)) for name in made]
        return Recipe(program, used, names, outputs, every_name)


class Recipe(NamedTuple):
    """``shared`` and ``columns`` are the inputs that are read, ``outputs`` what a kernel makes, and
    ``names`` all that comes out, each with the column that it is where nothing makes it.
    """

    program: Program
    shared: list[int]
    columns: list[str]
    outputs: list[str]
    names: list[tuple[str, str]]


class _Methods(nn.Module):
    """A rule of which any method can be called with other meta-parameters."""

    def __init__(self, rule: Any) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, method: str, *arguments: Any) -> Any:
        return getattr(self.rule, method)(*arguments)
