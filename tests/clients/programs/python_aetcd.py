"""What aetcd can be asked, against the endpoint named on the command line; a line for each answer."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import aetcd

HOST, PORT = sys.argv[1].split(":")


def say(what: str, *values: Any) -> None:
    print(what, *values, flush=True)


async def attempt(what: str, call: Any) -> None:
    try:
        say(what, await call)
    except Exception as error:
        say(what, type(error).__name__, error)


async def main() -> None:
    async with aetcd.Client(host=HOST, port=int(PORT), timeout=60) as client:
        say("put", (await client.put(b"a", b"1")).header.revision)
        say("put, previous", (await client.put(b"a", b"2", prev_kv=True)).prev_kv.value)
        found = await client.get(b"a")
        say("get", found.value, found.create_revision, found.mod_revision, found.version, found.lease)
        say("nothing", await client.get(b"nothing"))
        await asyncio.gather(*(client.put(b"many/%03d" % number, b"v" * 100) for number in range(300)))
        say("prefix", len(list(await client.get_prefix(b"many/"))))
        keys = await client.get_range(b"many/010", b"many/020", sort_order="descend", sort_target="key")
        say("range", [each.key for each in keys])
        say("replace", await client.replace(b"a", b"2", b"3"), await client.replace(b"a", b"2", b"4"))
        say("delete", (await client.delete(b"a", prev_kv=True)).prev_kv.value, await client.delete(b"a"))
        say("delete prefix", (await client.delete_prefix(b"many/1")).deleted)
        tx = client.transactions
        succeeded, responses = await client.transaction(
            compare=[tx.version(b"a") == 0, tx.value(b"many/000") == b"v" * 100],
            success=[tx.put(b"a", b"5"), tx.get(b"a"), tx.delete(b"many/000")],
            failure=[],
        )
        say("txn", succeeded, len(responses))
        await attempt("empty key", client.put(b"", b"x"))
        await attempt("a lease that is not there", client.put(b"a", b"x", lease=99))

        lease = await client.lease(60, lease_id=77)
        await client.put(b"leased", b"x", lease)
        info = await client.get_lease_info(77)
        say("lease", lease.ttl, info.keys)
        await lease.refresh()
        await lease.revoke()
        say("revoked", await client.get(b"leased"))
        await attempt("revoked twice", lease.revoke())

        first = (await client.put(b"w/0", b"0")).header.revision
        watch = await client.watch_prefix(b"w/", start_revision=first, prev_kv=True)
        for number in range(100):
            await client.put(b"w/%d" % (number % 7), b"%d" % number)
        await client.delete_prefix(b"w/")
        seen = []
        async for event in watch:
            seen.append((event.kind, event.kv.key, event.kv.value, event.kv.mod_revision - first))
            if len(seen) == 108:
                await watch.cancel()
                break
        say("events", seen)
        async with client.lock(b"mutex", ttl=20) as lock:
            say("lock", await lock.is_acquired(), await client.lock(b"mutex", ttl=20).acquire(timeout=0.3))
        say("members", [len(member.client_urls) async for member in client.members()])
        await client.compact(first)
        await attempt("compacted", client.compact(first))
        await client.defragment()
        say("status", (await client.status()).version.split(".")[:2])


asyncio.run(main())
