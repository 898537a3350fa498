"""Environment variables of Ray that RayKeeper sets for the processes that it starts."""

from __future__ import annotations

FAST_DEATH = "RAY_timeout_ms_task_wait_for_death_info"
"""Environment variable of Ray: with 0, a call to a dead actor fails in milliseconds instead of a second."""
