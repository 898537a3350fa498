"""Puts, and a watch of them, by aetcd until the input ends; JSON lines as those of the program on Go's clientv3.

aetcd knows one endpoint and repeats nothing by itself, so this does what its users do: after an error that says the
connection is gone it goes to the next endpoint, and a watch continues after the last revision that it has seen.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from typing import Any

import aetcd

ENDPOINTS, PREFIX = sys.argv[1].split(","), sys.argv[2].encode()
LOST = (aetcd.exceptions.ConnectionFailedError, aetcd.exceptions.ConnectionTimeoutError)
"""And ``AioRpcError``, which aetcd passes on from its watches."""


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


async def connected(endpoints: Any) -> aetcd.Client:
    host, port = next(endpoints).rsplit(":", 1)
    client = aetcd.Client(host=host, port=int(port), timeout=10, options={"grpc.keepalive_time_ms": 10_000})
    await client.connect()
    return client


async def put(endpoints: Any, client: aetcd.Client, key: bytes, value: bytes) -> tuple[aetcd.Client, int | Exception]:
    """The revision, or the error; and the client to go on with."""
    try:
        return client, (await client.put(key, value)).header.revision
    except aetcd.exceptions.ClientError as error:
        if isinstance(error, LOST):
            await client.close()
            client = await connected(endpoints)
        await asyncio.sleep(0.02)
        return client, error


async def watch(endpoints: Any, revision: int) -> None:
    """Until a key says that it is the end."""
    while True:
        client = await connected(endpoints)
        try:
            async for event in await client.watch_prefix(PREFIX, start_revision=revision + 1):
                kv = event.kv
                say(kind="event", key=kv.key.decode(), value=kv.value.decode(), revision=kv.mod_revision)
                revision = kv.mod_revision
                if kv.key == PREFIX + b"end":
                    return
        except Exception as error:
            say(kind="watch ended", error=repr(error))
            await asyncio.sleep(0.1)
        finally:
            await client.close()


async def main() -> None:
    endpoints = itertools.cycle(ENDPOINTS)
    client = await connected(endpoints)
    begun: int | Exception = ValueError()
    while isinstance(begun, Exception):
        client, begun = await put(endpoints, client, PREFIX + b"begin", b"")
    say(kind="begin", revision=begun)
    watching = asyncio.create_task(watch(itertools.cycle(ENDPOINTS), begun))
    over = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
    for number in itertools.count():
        if over.done():
            break
        key, value = PREFIX + b"%d" % (number % 5), str(number)
        client, outcome = await put(endpoints, client, key, value.encode())
        failed = isinstance(outcome, Exception)
        say(kind="put", key=key.decode(), value=value, **({"error": str(outcome)} if failed else {"revision": outcome}))
        await asyncio.sleep(0.005)
    ended: int | Exception = ValueError()
    while isinstance(ended, Exception):
        client, ended = await put(endpoints, client, PREFIX + b"end", b"")
    await watching
    await client.close()


asyncio.run(main())
