"""What all request frames have: until when their sender waits."""

from __future__ import annotations

from typing import Annotated

import msgspec

RelativeDeadline = Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]
"""Seconds after the arrival of a frame until which its sender waits for the answer; 0 or less: not any more."""
