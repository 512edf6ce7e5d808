"""Names of an optimizer's parameters, a module's or those of its groups, and their layout.

Where a module is given, roles, depths and order are those in the whole module, frozen parameters
and all. Where there are names only, order is what they tell (`roles.model_order`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lo_framework.layout import Layout
from lo_framework.roles import may_hold_embedding, model_order, roles_by_module
from lo_framework.spec import UserError

# What torch.compile, FSDP and checkpointing of activations put into the names of a module's parts.
WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


def names_of(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """The parameters' names in a list of parameter groups; empty where they have none."""
    return [name for group in groups for name in group.get("param_names", [])]


def names_in(model: nn.Module | None) -> dict[Tensor, str]:
    """The names of a module's parameters, tied ones by their first; empty without a module."""
    return {} if model is None else {p: name for name, p in model.named_parameters()}


def named_group(group: dict[str, Any], model: nn.Module | None, owner: str) -> dict[str, Any]:
    """A parameter group, as it was given, with the model's names, where a module is given.

    Raises:
        UserError: a parameter is not the model's.
    """
    given = group.get("params") if isinstance(group, dict) else None
    if model is None or given is None or isinstance(given, set):
        return group  # torch says what is wrong with it
    pairs = [given] if isinstance(given, Tensor) else list(given)
    params = [pair[-1] if isinstance(pair, tuple) else pair for pair in pairs]
    names = names_in(model)
    if not all(isinstance(p, Tensor) for p in params):
        return {**group, "params": pairs}
    for p in params:
        if p not in names:
            raise UserError(
                f"{owner} has a parameter of shape {tuple(p.shape)} that is not the model's: give "
                "a module that holds all of them"
            )
    return {**group, "params": [(names[p], p) for p in params]}


def plain_names(names: Sequence[str]) -> list[str]:
    """Names as the bare model has them, without the words that wrappers put in: of `WRAPPERS`
    anywhere, and of DataParallel and DDP ("module") in front of all.
    """
    paths = [[word for word in name.split(".") if word not in WRAPPERS] for name in names]
    while paths and all(len(path) > 1 and path[0] == "module" for path in paths):
        paths = [path[1:] for path in paths]
    plain = [".".join(path) for path in paths]
    return plain if all(plain) and len(set(plain)) == len(plain) else list(names)


def layout_in(model: nn.Module, names: Sequence[str]) -> Layout:
    """The layout of a module's parameters of these names, with roles by the types of modules."""
    every = [name for name, _ in model.named_parameters()]
    plain, roles = dict(zip(every, plain_names(every))), roles_by_module(model)
    shapes = {plain[name]: p.shape for name, p in model.named_parameters()}
    whole = Layout.of(shapes, {plain[name]: role for name, role in roles.items()})
    return _pick(whole, [plain[name] for name in names])


def layout_by_names(groups: Sequence[Sequence[str]], shapes: Mapping[str, torch.Size]) -> Layout:
    """The layout of named tensors, in the order of ``shapes``, where ``groups`` are the names of
    each parameter group.
    """
    plain = dict(zip(shapes, plain_names(list(shapes))))
    shapes = {plain[name]: shape for name, shape in shapes.items()}
    groups = [[plain[name] for name in names] for names in groups]
    order = model_order(groups, [name for name, shape in shapes.items() if len(shape) < 2])
    return _pick(Layout.of({name: shapes[name] for name in order}), list(shapes))


def _pick(whole: Layout, names: Sequence[str]) -> Layout:
    places = {slot.name: k for k, slot in enumerate(whole.slots)}
    return whole.pick([places[name] for name in names])


def refuse_other_order(
    optimizer: torch.optim.Optimizer, saved_groups: Sequence[Mapping[str, Any]]
) -> None:
    """Raise UserError if saved parameters have the names of these in another order. Names that
    differ by a prefix ("module.") are the same.
    """
    own, saved = _bare(names_of(optimizer.param_groups)), _bare(names_of(saved_groups))
    if own != saved and sorted(own) == sorted(saved):
        kind = type(optimizer).__name__
        raise UserError(
            f"this state has the same parameters in another order: build {kind} as it was saved"
        )


def _bare(names: list[str]) -> list[str]:
    """Names without what wrappers put in, and without the path that all of them begin with."""
    names = plain_names(names)
    while names and len({name.partition(".")[0] for name in names}) == 1 and "." in names[0]:
        names = [name.partition(".")[2] for name in names]
    return names


def warn_of_embedding(params: Sequence[Tensor], owner: str, stacklevel: int) -> None:
    """Say so if one of these parameters, which have no names, may be an embedding."""
    if may_hold_embedding([p.shape for p in params]):
        warnings.warn(
            f"{owner} has parameters without names, and the first matrix looks like an embedding, "
            "which only its name or module can tell: give the model or model.named_parameters()",
            stacklevel=stacklevel,
        )
