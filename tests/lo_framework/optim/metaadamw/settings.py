"""MetaAdamW from settings named one by one, as the tests' tables have them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from lo_framework.optim import MetaAdamW, MetaConfig, NetworkConfig
from lo_framework.optim.metaadamw.published import find_variant

NETWORK = {field.name for field in fields(NetworkConfig)}
META = {field.name for field in fields(MetaConfig)}


def build(params: Any, *args: Any, **settings: Any) -> MetaAdamW:
    """``MetaAdamW(params, *args, ...)`` with ``settings`` of the network, its training and the
    class.

    ``network``: sizes, or an optimizer or file; ``grouping``: a name, or groups of one's own;
    ``decay``: "scaled" as released; ``reproduce``: also None.
    """
    network = settings.pop("network", None) or {}
    variant = find_variant(settings.pop("reproduce", None) or "none")
    if settings.pop("decay", "") == "scaled":
        variant = replace(variant, scaled_decay=True)
    given = {}
    grouping = settings.get("grouping", "fine_grained")
    if not (isinstance(grouping, str) or grouping is None):
        given["grouping"] = settings.pop("grouping")
    if isinstance(network, Mapping):
        own = {name: settings.pop(name) for name in NETWORK & settings.keys()}
        network = NetworkConfig(**network, **own)
    meta = MetaConfig(**{name: settings.pop(name) for name in META & settings.keys()})
    return MetaAdamW(
        params, *args, network=network, meta=meta, reproduce=variant, **given, **settings
    )
