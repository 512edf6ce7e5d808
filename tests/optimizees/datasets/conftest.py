"""Data sets without a network."""

import pooch
import pytest

from lo_framework.optimizees import datasets


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No network, an empty download cache, no data folder in the environment, and no data set
    loaded before.
    """

    def refuse(*args, **kwargs):
        raise ConnectionError("no network in tests")

    monkeypatch.setattr(pooch, "retrieve", refuse)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")
    monkeypatch.setattr(datasets, "_loaded", {})
    monkeypatch.setattr(datasets, "_drawn", {})
    monkeypatch.delenv("LO_DATA_DIR", raising=False)
