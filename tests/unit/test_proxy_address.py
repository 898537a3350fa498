"""Addresses of proxies: as an operator writes them, and as clients are told."""

from __future__ import annotations

import pytest

from raykeeper.proxy_address import (
    AdvertisedAddress,
    ListenAddress,
    client_url,
    read_advertised_address,
    read_listen_address,
)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:2379", ListenAddress("127.0.0.1", 2379, 2379)),
        ("0.0.0.0:0", ListenAddress("0.0.0.0", 0, 0)),
        ("db-1.example.org:2379-2399", ListenAddress("db-1.example.org", 2379, 2399)),
        ("[::1]:65535", ListenAddress("::1", 65535, 65535)),
        ("[0:0::0]:1-1", ListenAddress("::", 1, 1)),
    ],
)
def test_an_address_to_listen_on(text: str, address: ListenAddress) -> None:
    assert read_listen_address(text) == address
    assert read_listen_address(str(address)) == address
    assert list(address.ports) == list(range(address.first, address.last + 1))


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "2379", "localhost", "localhost:", ":2379", "a:-1", "a:65536", "a:2-1", "a:0-5", "a:1-", "a:1-2-3",
        "::1:2379", "[::1]2379", "[::1", "[a]:1", "a b:1", "http://a:1", "a/b:1", "-a:1", "a..b:1", "a:1 ", "a:\u0661",
        "a:000001", f"{'a' * 254}:1", "a:1\n",
    ],
)  # fmt: skip
def test_what_is_not_an_address_to_listen_on(text: str) -> None:
    assert read_listen_address(text) is None


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("db.example.org", AdvertisedAddress("db.example.org", None)),
        ("10.0.0.7:443", AdvertisedAddress("10.0.0.7", 443)),
        ("[fd00::1]", AdvertisedAddress("fd00::1", None)),
        ("[fd00::1]:80", AdvertisedAddress("fd00::1", 80)),
        ("", None),
        ("a:0", None),
        ("a:1-2", None),
        ("fd00::1", None),
        ("http://a", None),
    ],
)
def test_an_address_that_clients_are_told(text: str, address: AdvertisedAddress | None) -> None:
    assert read_advertised_address(text) == address


@pytest.mark.parametrize(
    ("advertised", "bound", "url"),
    [
        (None, ("127.0.0.1", 2379), "http://127.0.0.1:2379"),
        (None, ("::1", 2379), "http://[::1]:2379"),
        (None, ("0.0.0.0", 2380), "http://10.0.0.7:2380"),
        (None, ("::", 2380), "http://10.0.0.7:2380"),
        (None, ("a.example.org", 1), "http://a.example.org:1"),
        (AdvertisedAddress("b", None), ("0.0.0.0", 5), "http://b:5"),
        (AdvertisedAddress("fd00::1", 6), ("127.0.0.1", 5), "http://[fd00::1]:6"),
    ],
)
def test_the_url_that_clients_are_told(advertised: AdvertisedAddress | None, bound: tuple[str, int], url: str) -> None:
    assert client_url(advertised, bound, "10.0.0.7") == url
