"""What python-etcd3gw (over the JSON gateway) can be asked, against the endpoint named on the command line."""

from __future__ import annotations

import sys
import threading
from typing import Any

from etcd3gw.client import Etcd3Client
from etcd3gw.utils import _decode, _encode

HOST, PORT = sys.argv[1].split(":")


def say(what: str, *values: Any) -> None:
    print(what, *values, flush=True)


client = Etcd3Client(HOST, int(PORT), timeout=60)
say("path", client.api_path)
say("put", client.put("a", "1"), client.put(b"b\xff", b"\x00\xff"))
say("get", client.get("a"), client.get(b"b\xff"), client.get("nothing"))
value, meta = client.get("a", metadata=True)[0]
say("metadata", value, sorted((key, meta[key]) for key in meta))
say("create", client.create("a", "2"), client.create("c", "2"))
say("replace", client.replace("c", "2", "3"), client.replace("c", "2", "4"))
for number in range(30):
    client.put(f"p/{number:02}", str(number))
say(
    "prefix", [(value, meta["key"]) for value, meta in client.get_prefix("p/", sort_order="descend", sort_target="mod")]
)
say("all", len(client.get_all()), len(client.get_all(sort_order="ascend", sort_target="key")))
say("delete", client.delete("c"), client.delete("c"), client.delete_prefix("p/1"))
txn = {
    "compare": [{"key": _encode("a"), "result": "EQUAL", "target": "VALUE", "value": _encode("1")}],
    "success": [
        {"request_put": {"key": _encode("a"), "value": _encode("9")}},
        {"request_range": {"key": _encode("a")}},
    ],
    "failure": [{"request_range": {"key": _encode("a")}}],
}
for _ in range(2):
    answer = client.transaction(txn)
    say("txn", answer.get("succeeded"), sorted(answer), len(answer["responses"]))
for path, body in (
    ("/kv/put", {"key": ""}),
    ("/kv/range", {"key": _encode("a"), "revision": 9999}),
    ("/kv/nothing", {}),
    ("/kv/range", {"unknown": 1}),
):
    try:
        say(path, client.post(client.get_url(path), json=body))
    except Exception as error:
        say(path, type(error).__name__, error)

lease = client.lease(60)
client.put("leased", "x", lease=lease)
say("lease", 50 < lease.ttl() <= 60, lease.keys(), lease.refresh(), lease.revoke(), client.get("leased"))
say("gone", lease.ttl())

events, cancel = client.watch_prefix("w/")
timer = threading.Timer(0.5, lambda: [client.put("w/1", "1"), client.delete("w/1"), client.put("w/2", "")])
timer.start()
for _ in range(3):
    event = next(events)
    say("event", event.get("type"), sorted((key, event["kv"][key]) for key in event["kv"] if "revision" not in key))
cancel()
timer.join()
say("past", _decode(_encode("x")))
events, cancel = client.watch("a", start_revision=2)
say("event of the past", next(events)["kv"]["mod_revision"])
cancel()

with client.lock("mutex", ttl=20) as lock:
    say("lock", lock.is_acquired(), client.lock("mutex", ttl=20).acquire())
say("unlocked", client.lock("mutex", ttl=20).acquire())
say("members", [len(member["clientURLs"]) for member in client.members()])
say("status", client.status()["version"].split(".")[:2])
