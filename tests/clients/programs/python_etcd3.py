"""What python-etcd3 can be asked, against the endpoint named on the command line; a line for each answer."""

from __future__ import annotations

import sys
import threading
from typing import Any

import etcd3
import grpc

HOST, PORT = sys.argv[1].split(":")


def say(what: str, *values: Any) -> None:
    print(what, *values, flush=True)


def attempt(what: str, call: Any) -> None:
    try:
        say(what, call())
    except grpc.RpcError as error:
        say(what, error.code(), error.details())
    except Exception as error:
        say(what, type(error).__name__, error)


client = etcd3.client(host=HOST, port=int(PORT), timeout=60)
say("put", client.put("a", "1").header.revision)
say("put, previous", client.put("a", "2", prev_kv=True).prev_kv.value)
value, meta = client.get("a")
say("get", value, meta.key, meta.create_revision, meta.mod_revision, meta.version, meta.lease_id)
say("get nothing", client.get("nothing")[0])
say("serializable", client.get("a", serializable=True)[0])
for number in range(30):
    client.put(f"p/{number:02}", str(number))
say("prefix", [(value, meta.key) for value, meta in client.get_prefix("p/", sort_order="descend", sort_target="value")])
say("range", [meta.key for _, meta in client.get_range("p/05", "p/09")])
say("all", len(list(client.get_all())), len(list(client.get_all(keys_only=True))))
say("if not exists", client.put_if_not_exists("a", "x"), client.put_if_not_exists("fresh", "x"))
say("replace", client.replace("a", "2", "3"), client.replace("a", "2", "4"))
say("delete", client.delete("fresh"), client.delete("fresh"))
say("delete prefix", client.delete_prefix("p/1").deleted)
tx = client.transactions
succeeded, responses = client.transaction(
    compare=[tx.value("a") == "3", tx.version("a") > 1, tx.create("nothing") == 0, tx.mod("a") != 1],
    success=[tx.put("a", "5"), tx.get("a"), tx.delete("p/20"), tx.txn([tx.version("a") == 9], [], [tx.put("b", "1")])],
    failure=[tx.get("a")],
)
say("txn", succeeded, responses[0], responses[1][0][0], *responses[2:])
attempt("txn, a key twice", lambda: client.transaction([], [tx.put("a", "1"), tx.put("a", "2")], []))
attempt("empty key", lambda: client.put("", "x"))

lease = client.lease(60)
client.put("leased", "x", lease=lease)
say("lease", lease.granted_ttl, 50 < lease.remaining_ttl <= 60, lease.keys, lease.refresh()[0].TTL)
lease.revoke()
say("revoked", client.get("leased")[0])
chosen = client.lease(60, lease_id=4242)
say("chosen", chosen.id)
attempt("chosen twice", lambda: client.lease(60, lease_id=4242))
attempt("gone", lambda: client.revoke_lease(99))
say("refresh a lease that is gone", [each.TTL for each in client.refresh_lease(99)])

start = client.put("w/0", "0").header.revision
for number in range(1, 5):
    client.put(f"w/{number}", str(number))
client.delete("w/1")
events, cancel = client.watch_prefix("w/", start_revision=start, prev_kv=True)
for _ in range(6):
    event = next(events)
    say("event", type(event).__name__, event.key, event.value, event.mod_revision - start, event.prev_value)
cancel()
seen = threading.Event()
watch_id = client.add_watch_callback("cb", lambda response: seen.set())
client.put("cb", "x")
say("callback", seen.wait(60))
client.cancel_watch(watch_id)
client.compact(start + 1)
events, cancel = client.watch("w/0", start_revision=1)
attempt("watch of what is compacted", lambda: next(events))
attempt("get of what is compacted", lambda: client.compact(1))

with client.lock("mutex", ttl=20) as lock:  # to wait for one that is held is beyond it with a tenacity of today
    say("lock", lock.is_acquired(), client.get(lock.key)[0] == lock.uuid)
say("unlocked", client.lock("mutex", ttl=20).acquire())

status = client.status()
say("status", status.leader is not None, status.raft_term > 0, status.version.split(".")[:2])
say("members", [len(member.client_urls) for member in client.members])
say("alarms", list(client.list_alarms()))
client.defragment()
say("hash", client.hash() > 0)
client.close()
