"""The values that were asked for last are held, and no others."""

from __future__ import annotations

from lo_framework.recent import Recent


def test_the_ones_asked_for_last_are_held() -> None:
    made: list[str] = []

    def of(key: str) -> str:
        return recent.of(key, lambda: made.append(key) or key)  # type: ignore[func-returns-value]

    recent: Recent[str, str] = Recent(2)
    assert [of(key) for key in "abacab"] == list("abacab")
    assert "".join(made) == "abcb"
