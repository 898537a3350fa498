"""What all tests share: marks by folder, and hypothesis without a clock."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# No deadline: a machine that is busy with something else is no failure. The blob reproduces an example anywhere.
settings.register_profile("raykeeper", deadline=None, print_blob=True)
settings.load_profile("raykeeper")

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        folder = item.path.relative_to(_HERE).parts[0]
        if folder in ("cluster", "simulation"):
            item.add_marker(folder)
