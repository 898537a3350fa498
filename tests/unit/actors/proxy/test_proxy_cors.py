"""Web pages of other origins: off by default, and on for those that are named."""

from __future__ import annotations

import click
import pytest

from lab.http2.etcd_port import etcd_port
from lab.http2.http_client import request
from raykeeper.cli.proxy import origin

PAGE = {"Origin": "https://page.example"}
ASKED = {**PAGE, "Access-Control-Request-Method": "PUT"}


def test_off_by_default() -> None:
    with etcd_port() as port:
        for target in ("/kv/a", "/version", "/v3/kv/range"):
            reply = request(port.endpoint, "GET", target, None, PAGE)
            assert not [name for name in reply.headers if name.startswith("access-control")]
            assert request(port.endpoint, "OPTIONS", target, None, ASKED).status == 405


@pytest.mark.parametrize(("allowed", "answer"), [("*", "*"), ("https://page.example", "https://page.example")])
def test_an_origin_that_is_allowed(allowed: str, answer: str) -> None:
    with etcd_port(cors=(allowed,)) as port:
        for target in ("/kv/a", "/nothing", "/version", "/kv/a?nonsense"):
            reply = request(port.endpoint, "GET", target, None, PAGE)
            assert reply.headers["access-control-allow-origin"] == answer
            assert "x-raykeeper-revision" in reply.headers["access-control-expose-headers"]
        asked = request(port.endpoint, "OPTIONS", "/kv/a", None, ASKED)
        assert (asked.status, asked.body) == (200, b"")
        assert "PUT" in asked.headers["access-control-allow-methods"]
        assert "if-match" in asked.headers["access-control-allow-headers"]


def test_another_origin() -> None:
    with etcd_port(cors=("https://page.example",)) as port:
        for other in ({"Origin": "https://page.example.evil"}, {"Origin": "null"}, {}):
            reply = request(port.endpoint, "GET", "/version", None, other)
            assert "access-control-allow-origin" not in reply.headers
            assert request(port.endpoint, "OPTIONS", "/version", None, other).status == 405


@pytest.mark.parametrize("text", ["page.example", "https://page.example/", "https://", "ftp://x", "https://a b", ""])
def test_what_is_not_an_origin(text: str) -> None:
    with pytest.raises(click.BadParameter):
        origin(text)


@pytest.mark.parametrize("text", ["*", "http://localhost:3000", "https://[::1]"])
def test_origins(text: str) -> None:
    assert origin(text) == text
