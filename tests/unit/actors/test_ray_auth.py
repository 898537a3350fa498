"""What is there for a token of Ray, whatever it is, is shown, kept back or refused: Ray dies of what it cannot send."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from raykeeper import ClusterNotFound
from raykeeper.actors import ray_auth
from raykeeper.actors.ray_auth import check_token, showing_token

GOOD = ["ab", " ab\r\n", "a b~!"]
NONE = ["", " \n"]
BAD = ["a\nb", "a\tb", "a\x7f", "\u00e9", "\udcff", "a\u2028", "\x01"]


@pytest.fixture(params=["variable", "file", "home"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str | Path:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    if request.param == "variable":
        return "RAY_AUTH_TOKEN"
    if request.param == "file":
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
        return tmp_path / "token"
    (tmp_path / ".ray").mkdir()
    return tmp_path / ".ray" / "auth_token"


def lay(place: str | Path, token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(place, Path):
        place.write_bytes(os.fsencode(token))
    else:
        monkeypatch.setenv(place, token)


@pytest.mark.parametrize("token", [*GOOD, *NONE, *BAD])
def test_a_token_is_shown_if_it_can_be(token: str, place: str | Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(place, token, monkeypatch)
    with showing_token():
        assert (os.environ.get("RAY_AUTH_MODE") == "token") is (token in GOOD)
    assert "RAY_AUTH_MODE" not in os.environ
    if token in BAD:
        assert ray_auth._why_refused() == f"that in {place} is none"


@pytest.mark.parametrize("token", [*GOOD, *NONE, *BAD])
def test_what_ray_would_send_is_checked(token: str, place: str | Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(place, token, monkeypatch)
    for mode in (None, "token", "TOKEN", "disabled"):
        if mode is not None:
            monkeypatch.setenv("RAY_AUTH_MODE", mode)
        if token in BAD and mode != "disabled":
            with pytest.raises(ClusterNotFound, match="token"):
                check_token()
        else:
            check_token()
