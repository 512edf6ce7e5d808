"""The roles of a model's tensors and the order that they have in it: read off its modules, or off
names and shapes where there is no module.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from operator import itemgetter
from typing import NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

ROLES = ("matrix", "conv", "bias", "norm", "embedding")
LAYERS = ("matrix", "conv")

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
MATRICES = (nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)

Path = tuple[str, ...]  # the words of a dotted name
Named = tuple[Path, bool]  # and whether its tensor has fewer than two dimensions


class TensorRole(NamedTuple):
    """
    Attributes:
        role: one of :data:`ROLES`.
        fan_in: how many numbers enter an output, for a matrix or convolution.
        kind: type of the module it belongs to ("linear", "conv", "norm", "embedding",
            "attention"); empty where no module tells.
    """

    role: str
    fan_in: int = 1
    kind: str = ""


def roles_by_shape(shapes: Mapping[str, Sequence[int]]) -> dict[str, TensorRole]:
    """Roles by shape and order, so that a bare ``model.parameters()`` gives the same ones as named
    parameters.

    In a run of equal vectors after a weight, pairs from the end are (gain, shift) of normalisations
    and a left-over first one is the weight's bias. Only an embedding looks like any other matrix:
    there the name decides, where there is one.
    """
    roles: dict[str, TensorRole] = {}
    for shape, group in groupby(shapes.items(), key=itemgetter(1)):
        run = [name for name, _ in group]
        if len(shape) < 2:
            single = len(run) % 2
            words = ["bias"] * single + ["norm"] * (len(run) - single)
            roles.update(zip(run, map(TensorRole, words), strict=True))
            continue
        usual = "conv" if len(shape) >= 3 else "matrix"
        for name in run:
            embeds = len(shape) == 2 and any(
                word in f".{name.lower()}" for word in ("embed", ".wte", ".wpe")
            )
            roles[name] = TensorRole("embedding" if embeds else usual, math.prod(shape[1:]))
    return roles


def roles_by_module(model: nn.Module) -> dict[str, TensorRole]:
    """Roles of all parameters in the model's own order, tied ones once, by the types of the modules
    that own them.

    Parameters of modules of other types have their roles by shape, without leading dimensions of 1
    (a position parameter ``[1, T, d]`` is a matrix, a class token a vector).
    """
    modules = dict(model.named_modules())
    named = list(model.named_parameters())
    shapes = {name: _squeezed(p.shape) for name, p in named}
    roles = roles_by_shape(shapes)
    for name, p in named:
        path, _, leaf = name.rpartition(".")
        # A parametrized weight belongs to the module, not to the list of its parametrizations.
        path = f".{path}".partition(".parametrizations.")[0][1:]
        module, parent = modules.get(path), modules.get(path.rpartition(".")[0])
        if typed := _typed(module, leaf, tuple(p.shape)):
            attends = isinstance(parent, nn.MultiheadAttention) and typed.kind == "linear"
            roles[name] = typed._replace(kind="attention") if attends else typed
    return roles


def _typed(module: nn.Module | None, leaf: str, shape: tuple[int, ...]) -> TensorRole | None:
    """The role of a module's own parameter; None where its type does not tell."""
    if isinstance(module, NORMS) or _is_named_norm(module):
        return TensorRole("norm", kind="norm")
    if isinstance(module, EMBEDDINGS):
        return TensorRole("embedding", math.prod(shape[1:]), "embedding")
    # The released GPT-2 has linear layers [in, out] of a class of this name.
    is_turned = type(module).__name__ == "Conv1D" and not isinstance(module, _ConvNd)
    is_conv = isinstance(module, _ConvNd)
    if not (is_conv or is_turned or isinstance(module, MATRICES)):
        return None
    attends = isinstance(module, nn.MultiheadAttention)
    kind = "conv" if is_conv else "attention" if attends else "linear"
    if len(shape) < 2 or "bias" in leaf:
        return TensorRole("bias", kind=kind)
    if leaf in ("weight_g", "original0"):  # the gains of a normalised weight
        return TensorRole("norm", kind=kind)
    fan_in = math.prod(shape[1:])
    if is_turned:
        fan_in = shape[0]
    elif isinstance(module, _ConvTransposeNd):
        fan_in = shape[0] // module.groups * math.prod(shape[2:])
    return TensorRole("conv" if is_conv else "matrix", fan_in, kind)


def _is_named_norm(module: nn.Module | None) -> bool:
    """Whether a class of the user's is called a norm and has vectors only."""
    own = list(module.parameters(recurse=False)) if module is not None else []
    return "norm" in type(module).__name__.lower() and all(p.dim() < 2 for p in own)


def _squeezed(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of a tensor of three or more dimensions without leading ones of 1."""
    first = next((i for i, size in enumerate(shape[:-1]) if size > 1), len(shape) - 1)
    return tuple(shape[first:] if len(shape) > 2 else shape)


def may_hold_embedding(shapes: Sequence[Sequence[int]]) -> bool:
    """Whether the first matrix of a bare list looks like an embedding: far more rows than columns,
    no bias after it, and a later matrix that takes its columns.
    """
    places = [i for i, shape in enumerate(shapes) if len(shape) >= 2]
    if not places or len(shapes[places[0]]) != 2:
        return False
    rows, columns = shapes[places[0]]
    after = shapes[places[0] + 1 :]
    has_bias = bool(after) and tuple(after[0]) == (rows,)
    takers = any(len(shape) == 2 and columns in shape for shape in after)
    return rows >= 4 * columns and not has_bias and takers


def layer_number(name: str) -> int | None:
    """The first number in a dotted name."""
    return next((int(word) for word in name.split(".") if word.isdecimal()), None)


def model_order(groups: Sequence[Sequence[str]], vectors: Collection[str] = ()) -> list[str]:
    """Dotted names as their model has them, from parameter groups that may have parted a layer's
    weight and bias, and may be in any order; a model's own order stays as it is.

    What belongs together by its name comes together, a weight before its bias. Children that are
    numbered come by their numbers; others as the groups have them, one after the other or, where
    they part what belongs together, side by side. Where no group tells then (a norm of one, a
    matrix of another), the numbers in their names do, and matrices come first. Groups whose layers
    come last to first, or biases before weights, are read from the end.

    Args:
        groups: the names of each group, in its order.
        vectors: those of tensors with fewer than two dimensions.
    """
    flat = {tuple(name.split(".")) for name in vectors}
    lists = [
        [(path := tuple(name.split(".")), path in flat) for name in names]
        for names in _oriented(groups)
    ]
    return [".".join(path) for path in _merged(lists, False)]


def _oriented(groups: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """The groups first layers first, each and all together."""
    votes = [sum(_rise(a, b) for a, b in pairwise(names)) for names in groups]
    together = sum(votes)
    turned = [
        names[::-1] if (vote or together) < 0 else names
        for names, vote in zip(groups, votes, strict=True)
    ]
    firsts = [names[0] for names in turned if names]
    return turned[::-1] if sum(_rise(a, b) for a, b in pairwise(firsts)) < 0 else turned


def _rise(one: str, two: str) -> int:
    """Positive where the names say that ``one`` is before ``two`` in the model, negative where they
    say that it is after it, 0 where they do not tell.
    """
    for a, b in zip(one.split("."), two.split("."), strict=False):
        if a != b:
            (number, *rest), (greater, *other) = _numbered(a), _numbered(b)
            if rest == other:
                return 2 if greater > number else -2
            return (a.replace("weight", "bias") == b) - (b.replace("weight", "bias") == a)
    return 0


def _numbered(word: str) -> tuple[int, str, str]:
    """The last number in a word (-1: none), what is after it, and what is before it."""
    found = re.fullmatch(r"(.*?)(\d+)(\D*)", word)
    return (int(found[2]), found[3], found[1]) if found else (-1, "", word)


def _merged(lists: Sequence[Sequence[Named]], parted: bool) -> Iterator[Path]:
    """Yield the paths of all lists in one order. ``parted``: whether these lists have parted what
    belongs together.
    """
    below: dict[str, list[list[Named]]] = {}
    for k, named in enumerate(lists):
        for path, is_vector in named:
            parts = below.setdefault(path[0], [[] for _ in lists])
            parts[k].append((path[1:], is_vector))
    heads = [[path[0] for path, _ in named] for named in lists if named]
    kinds = [{is_vector for _, is_vector in named} for named in lists if named]
    runs = [word for word, _ in groupby(word for words in heads for word in words)]
    pure = all(len(kind) == 1 for kind in kinds) and any(len({*words}) > 1 for words in heads)
    parted = parted or len(runs) > len(below) or (len(kinds) > 1 and pure)
    vectors = {w for w, parts in below.items() if all(flag for part in parts for _, flag in part)}
    leaves = {
        word for word, parts in below.items() if any(not p for part in parts for p, _ in part)
    }
    for word in _words(heads if parted else [runs], vectors, leaves):
        if word in leaves:
            yield (word,)
        inner = [[each for each in part if each[0]] for part in below[word]]
        for path in _merged(inner, parted) if any(inner) else ():
            yield (word, *path)


def _words(
    lists: Sequence[Sequence[str]], vectors: Collection[str], leaves: Collection[str]
) -> list[str]:
    """The words of all lists, once each, in an order that agrees with each list where it can."""
    lists = [list(dict.fromkeys(words)) for words in lists]
    places = {word: k for k, word in enumerate(dict.fromkeys(w for words in lists for w in words))}
    if all(word.isdecimal() for word in places):
        return sorted(places, key=int)
    earlier: dict[str, set[str]] = {word: set() for word in places}
    for words in lists:
        for a, b in pairwise(words):
            earlier[b].add(a)

    def priority(word: str) -> tuple[int, str, bool, int]:
        return *_numbered(word)[:2], word in vectors, places[word]

    order: list[str] = []
    while places:
        free = [word for word in places if earlier[word].isdisjoint(places)]
        order.append(min(free or places, key=priority))
        del places[order[-1]]
    # A module's own parameters are side by side, before its children.
    own = [k for k, word in enumerate(order) if word in leaves]
    if own and own[-1] - own[0] >= len(own):
        order.sort(key=lambda word: word not in leaves)
    for bias in [word for word in order if "bias" in word]:
        weight = bias.replace("bias", "weight")
        if weight in order[order.index(bias) :]:
            order.remove(bias)
            order.insert(order.index(weight) + 1, bias)
    return order
