"""Where a watch stands as long as nothing was taken from it."""

from __future__ import annotations

from collections.abc import Callable

from raykeeper import Client


def test_a_watch_tells_where_it_began_though_events_wait(kv: Client, until: Callable[..., None]) -> None:
    """A consumer that continues from ``revision`` later must not be sent back to the beginning of history."""
    before = kv.put("a", "1").revision
    with kv.watch("a") as fresh, kv.watch("a", start_revision=before) as past:
        kv.put("a", "2")
        until(lambda: not fresh._subscription.empty and not past._subscription.empty)
        assert (fresh.revision, past.revision) == (before, before - 1)
        assert [past.next(1).kv.text for _ in range(2)] == ["1", "2"]  # type: ignore[union-attr]
        until(lambda: past.revision > before)
