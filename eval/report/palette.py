"""One look per optimizer in every figure: a colour-blind-safe colour and a dash pattern, so that
colour is never alone.

Colours: Okabe & Ito 2008, "Color universal design", without the yellow (too pale for a line on
white).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[tuple[float, ...], ...] = ((), (5, 1.5), (1.2, 1.2), (6, 1.5, 1.2, 1.5))

# The places of the optimizers that reports show, place = colour + 7 x dashes: relatives share a
# colour. What is not listed takes a colour that its figure leaves free.
PLACES = {
    "adamw": 0,
    "attention-mlp": 1,
    "mlp": 8,
    "attention": 5,
    "hyper-adamw": 12,
    "lstm": 15,
    "metaadamw": 3,
    "metaoptimize": 4,
    "sam": 2,
    "gsam": 9,
    "gam": 16,
    "sgdm": 6,
}


class Look(NamedTuple):
    colour: str
    dashes: tuple[float, ...]  # lengths in points, empty: solid


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """A look for each label. The first word of a label ("adamw" of "adamw lr=0.01 cosine") finds
    its fixed place.

    Two variants of one optimizer share its colour and differ in dashes; more take the colours that
    are left, in order, as strangers do: five dash patterns of one colour cannot be told apart.
    """
    unique = list(dict.fromkeys(labels))
    bases = {
        label: label.replace(":", " ").split()[0] if label.split() else label for label in unique
    }
    places = {base: PLACES[base] for base in bases.values() if base in PLACES}
    for base in dict.fromkeys(bases.values()):
        if base not in places:
            taken = {place % len(COLOURS) for place in places.values()}
            free = (place for place in range(len(COLOURS)) if place not in taken)
            # More optimizers than colours: begin again with the next dash pattern.
            places[base] = next(
                free, next(i for i in range(len(COLOURS), 1000) if i not in places.values())
            )
    count = Counter(bases.values())
    left = [
        c
        for i, c in enumerate(COLOURS)
        if i not in {place % len(COLOURS) for place in places.values()}
    ]
    used: dict[str, int] = {}
    result = {}
    for label in unique:
        base = bases[label]
        place, variant = places[base], used.get(base, 0)
        used[base] = variant + 1
        colour = (
            left.pop(0) if variant and count[base] > 2 and left else COLOURS[place % len(COLOURS)]
        )
        result[label] = Look(colour, DASHES[(variant + place // len(COLOURS)) % len(DASHES)])
    return result
