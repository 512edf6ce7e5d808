"""A vmapped step as a flat list of tensor operations, recorded once and replayed.

Python, vmap and autograd together cost milliseconds a step, more than the arithmetic of a small
family. What they do is the same at every step, so it is recorded at the first one (``make_fx`` on
tensors without data), without the operations that repeat or change nothing, and from then on
replayed. The bits are those of the plain step. Where a meta-gradient is wanted, the backward pass
is recorded with the forward pass and the list is cut in two, as AOTAutograd does.

With ``engine="inductor"`` the lists also go through ``torch.compile``: faster still, other bits,
and it needs a C++ compiler.
"""

from __future__ import annotations

import linecache
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx import graph_module
from torch.fx.experimental.proxy_tensor import make_fx

from lo_framework.errors import UserError, describe

Flat = Sequence[Tensor]


class CannotRecord(UserError):
    """A function whose operations cannot be recorded."""


_aten = torch.ops.aten
_SAME = (  # change nothing if shape, strides and dtype stay
    _aten.expand,
    _aten.view,
    _aten._unsafe_view,
    _aten.reshape,
    _aten.alias,
    _aten.permute,
    _aten.transpose,
    _aten.detach,
    _aten.lift_fresh_copy,
)
# Made again in the backward pass rather than kept: views and constants.
_FREE = (
    *_SAME,
    _aten.unsqueeze,
    _aten.squeeze,
    _aten.select,
    _aten.slice,
    _aten.split_with_sizes,
    _aten.unbind,
    _aten.t,
    _aten.scalar_tensor,
    _aten.zeros_like,
    _aten.ones_like,
    _aten.new_zeros,
    _aten.zeros,
)


class Recorder:
    """Calls ``function``, of a flat list of tensors to a list of tensors, by replaying recordings:
    one for each kind of input.

    Where gradients are enabled and some input requires one, the outputs have them too (first
    derivatives only). ``function`` must be pure and make the same operations whatever the values.

    Attributes:
        asked: whether recording was asked for by name: what cannot be recorded raises CannotRecord
            then, and is called as it is otherwise.
    """

    def __init__(
        self, function: Callable[[Flat], list[Tensor]], engine: str, asked: bool = True
    ) -> None:
        self.function, self.engine, self.asked = function, engine, asked
        self.recordings: dict[Any, Recording | None] = {}  # None: cannot be recorded

    def __call__(self, inputs: Flat) -> Sequence[Tensor]:
        enabled = torch.is_grad_enabled()
        wanted = tuple(enabled and x.requires_grad for x in inputs)
        key = (wanted, tuple((x.shape, x.stride(), x.dtype, x.device) for x in inputs))
        if key not in self.recordings:
            try:
                self.recordings[key] = record(self.function, inputs, wanted, self.engine)
            except CannotRecord:
                if self.asked:
                    raise
                self.recordings[key] = None
        recording = self.recordings[key]
        if recording is None:
            return self.function(inputs)
        if recording.backward is None:
            return recording.forward(*inputs)
        return _Replay.apply(recording, *inputs)


@dataclass(eq=False)
class Recording:
    """A recorded function: ``forward(*inputs)`` gives ``count`` outputs (then, if there is a
    ``backward``, what that needs beside cotangents).
    """

    forward: Callable[..., Any]
    count: int
    backward: Callable[..., Any] | None = None
    wanted: Sequence[bool] = ()


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, recording: Recording, *inputs: Tensor) -> tuple[Tensor, ...]:
        results = recording.forward(*inputs)
        outputs = results[: recording.count]
        ctx.recording = recording
        ctx.save_for_backward(*results[recording.count :])
        ctx.mark_non_differentiable(*(x for x in outputs if not x.is_floating_point()))
        return tuple(outputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        seeds = [x.contiguous() for x in cotangents if x.is_floating_point()]
        found = iter(ctx.recording.backward(*ctx.saved_tensors, *seeds))
        return (None, *(next(found) if wanted else None for wanted in ctx.recording.wanted))


def record(
    function: Callable[[Flat], list[Tensor]], inputs: Flat, wanted: Sequence[bool], engine: str
) -> Recording:
    """Record ``function`` at inputs like these; ``wanted``: whose gradients will be asked for."""
    try:
        return _record(function, inputs, wanted, engine)
    finally:
        _forget_sources()


def _forget_sources() -> None:
    """Drop the texts of recorded lists. Torch would keep them for ever, for tracebacks, and a
    family that varies is recorded again and again.
    """
    loader = getattr(graph_module, "_loader", None)
    if loader is not None:
        for name in loader.eval_cache:
            linecache.cache.pop(name, None)
        loader.eval_cache.clear()


def _record(
    function: Callable[[Flat], list[Tensor]], inputs: Flat, wanted: Sequence[bool], engine: str
) -> Recording:
    plain = [x.detach() for x in inputs]
    with torch.no_grad():
        # Also fills caches (constants of a layout, say) with tensors that have data.
        outputs = [x.detach() for x in function(plain)]
        if not any(wanted):
            return Recording(_executable(_traced(function, plain), engine), len(outputs))
    seeds = [x for x in outputs if x.is_floating_point()]

    def joint(values: Flat) -> list[Tensor]:
        given = [x.detach().requires_grad_() if w else x for x, w in zip(values, wanted)]
        with torch.enable_grad():
            results = function(given)
        pairs = zip(
            [x for x in results if x.is_floating_point()], values[len(given) :], strict=True
        )
        reached = [(x, seed) for x, seed in pairs if x.requires_grad]
        leaves = [x for x, w in zip(given, wanted) if w]
        grads = torch.autograd.grad(
            [x for x, _ in reached],
            leaves,
            [seed for _, seed in reached],
            allow_unused=True,
            materialize_grads=True,
        )
        return [*(x.detach() for x in results), *grads]

    graph = _traced(joint, [*plain, *seeds])
    forward, backward = _cut(graph, len(plain), len(outputs))
    return Recording(
        _executable(forward, engine), len(outputs), _executable(backward, engine), wanted
    )


def _traced(function: Callable[[Flat], list[Tensor]], inputs: Flat) -> fx.GraphModule:
    """The operations of ``function``; constants that it holds stay tensors of the module."""
    traced = make_fx(
        lambda *values: function(values), tracing_mode="fake", _allow_non_fake_inputs=True
    )
    try:
        graph = traced(*inputs)
    except Exception as error:  # what `record` has called just before without one
        raise CannotRecord(
            f"this task cannot be recorded ({describe(error)}); use engine eager"
        ) from error
    _out_of_place(graph.graph)
    _simplify(graph.graph)
    graph.recompile()
    return graph


def _out_of_place(graph: fx.Graph) -> None:
    """Replace writes into fresh intermediates, as derivative formulas make them, by operations that
    do not write, so that equal calls have equal results.
    """
    for node in list(graph.nodes):
        if not getattr(getattr(node.target, "_schema", None), "is_mutable", False):
            continue
        written: Any = node.args[0] if node.args else None
        name = node.target._schema.name.rpartition("::")[2]
        plain = (
            name.endswith("_") and isinstance(written, fx.Node) and written.op == "call_function"
        )
        if (
            not plain
            or _is_view(written)
            or any(_is_view(user) for user in written.users if user is not node)
        ):
            raise CannotRecord(
                f"this task cannot be recorded, because it changes a tensor in place ({name}); "
                "use engine eager"
            )
        node.target = getattr(getattr(_aten, name[:-1]), node.target._overloadname)
        after = {later for later in graph.nodes if later > node}
        written.replace_all_uses_with(node, delete_user_cb=after.__contains__)


def _is_view(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return _is_view(node.args[0])  # type: ignore[arg-type]
    schema = getattr(node.target, "_schema", None)
    return (
        schema is not None
        and not schema.is_mutable
        and any(r.alias_info is not None for r in schema.returns)
    )


def _simplify(graph: fx.Graph) -> None:
    """Drop operations that change nothing, and all but the first of equal ones: the list has no
    side effects.
    """
    seen: dict[tuple[Any, str, str], fx.Node] = {}
    for node in list(graph.nodes):
        if node.op == "get_attr":
            key: tuple[Any, str, str] = ("get_attr", str(node.target), "")
        elif node.op == "call_function":
            key = (node.target, repr(node.args), repr(node.kwargs))
        else:
            continue
        same = seen.get(key)
        if same is None and _packet(node) in _SAME and _alike(node, node.args[0]):
            same = node.args[0]
        if same is None:
            seen[key] = node
        else:
            node.replace_all_uses_with(same)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _alike(a: fx.Node, b: Any) -> bool:
    x, y = a.meta.get("val"), b.meta.get("val") if isinstance(b, fx.Node) else None
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        return False
    return x.shape == y.shape and x.stride() == y.stride() and x.dtype == y.dtype


def _cut(
    joint: fx.GraphModule, num_inputs: int, num_outputs: int
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Cut a joint list into (inputs) -> (outputs, kept) and (kept, cotangents) -> gradients:
    whatever needs no cotangent goes forward.
    """
    nodes = list(joint.graph.nodes)
    given = [node for node in nodes if node.op == "placeholder"]
    # In this order, because each set is made from the ones before it: `late`, by one walk down the
    # list, has a cotangent among its ancestors; `needed` is what late nodes and gradients read and
    # is not late, so it could be kept; `again`, by one walk up, is that part of it that costs less
    # to make twice than to keep, and what such a node reads is then needed itself.
    late = set(given[num_inputs:])
    for node in nodes:
        if node.op == "call_function" and any(x in late for x in node.all_input_nodes):
            late.add(node)
    results = nodes[-1].args[0]  # of the node "output"
    outputs, grads = results[:num_outputs], results[num_outputs:]
    needed = {x for node in late for x in node.all_input_nodes} | {
        x for x in grads if isinstance(x, fx.Node)
    }
    needed -= late
    again: set[fx.Node] = set()  # made in both passes
    for node in reversed(nodes):
        if node in needed and (node.op == "get_attr" or _free(node)):
            again.add(node)
            needed |= set(node.all_input_nodes)
    kept = [node for node in nodes if node in needed and node not in again]
    early = [node for node in nodes if node not in late and node.op != "output"]
    forward = _part(joint, given[:num_inputs], early, [*outputs, *kept])
    backward = _part(
        joint, [*kept, *given[num_inputs:]], [n for n in nodes if n in again or n in late], grads
    )
    return forward, backward


def _free(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return _free(node.args[0])  # type: ignore[arg-type]
    return _packet(node) in _FREE


def _packet(node: fx.Node) -> Any:
    """The operation of ``node``, whatever its overload."""
    return getattr(node.target, "overloadpacket", None)


def _part(
    whole: fx.GraphModule, inputs: Iterable[fx.Node], nodes: Iterable[fx.Node], results: list[Any]
) -> fx.GraphModule:
    graph, copies = fx.Graph(), {}
    for node in inputs:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = node.meta
    for node in nodes:
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output([copies[x] if isinstance(x, fx.Node) else x for x in results])
    graph.eliminate_dead_code()
    return fx.GraphModule(whole, graph)


def _executable(graph: fx.GraphModule, engine: str) -> Callable[..., Any]:
    if engine != "inductor":
        return graph.forward
    compiled = torch.compile(graph, dynamic=False)
    # Whether an input requires a gradient is none of the compiler's business: it would compile once
    # for each case.
    return lambda *inputs: compiled(*(x.detach() for x in inputs))
