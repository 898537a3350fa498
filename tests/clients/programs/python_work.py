"""Puts, and a watch of them, by etcd3, etcd3gw or etcdctl until the input ends; JSON lines as those of the program on
Go's clientv3.

The libraries know one endpoint and repeat nothing, so this does what their users do: after an error it goes to the
next endpoint, and a watch continues after the last revision that it has seen. etcdctl knows all endpoints; it is run
once for each put.
"""

from __future__ import annotations

import base64
import itertools
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

CLIENT, ENDPOINTS, PREFIX = sys.argv[1], sys.argv[2].split(","), sys.argv[3]
TIMEOUT_S = 10
SILENCE_S = 10
"""etcd3gw does not tell its user that the connection of a watch is gone: after so much silence it is made again."""

Change = tuple[str, str, int]
"""Key, value, revision."""

_printing = threading.Lock()


def say(**what: Any) -> None:
    with _printing:
        print(json.dumps(what), flush=True)


def text(encoded: str) -> str:
    return base64.b64decode(encoded).decode()


class Etcd3:
    """By the library etcd3."""

    def __init__(self) -> None:
        self._endpoints = itertools.cycle(ENDPOINTS)
        self.change_endpoint()

    def change_endpoint(self) -> None:
        import etcd3

        host, port = next(self._endpoints).split(":")
        self._client = etcd3.client(host=host, port=int(port), timeout=TIMEOUT_S)

    def put(self, key: str, value: str) -> int:
        revision: int = self._client.put(key, value).header.revision
        return revision

    def watch(self, start: int) -> Iterator[Change]:
        events, _ = self._client.watch_prefix(PREFIX, start_revision=start)
        for event in events:
            yield event.key.decode(), event.value.decode(), event.mod_revision


class Etcd3Gateway:
    """By the library etcd3gw, over the JSON gateway."""

    def __init__(self) -> None:
        self._endpoints = itertools.cycle(ENDPOINTS)
        self.change_endpoint()

    def change_endpoint(self) -> None:
        import etcd3gw

        host, port = next(self._endpoints).split(":")
        self._client = etcd3gw.client(host=host, port=int(port), timeout=TIMEOUT_S, api_path="/v3/")

    def put(self, key: str, value: str) -> int:
        """The library's own ``put`` does not tell the revision."""
        encoded = {name: base64.b64encode(each.encode()).decode() for name, each in (("key", key), ("value", value))}
        return int(self._client.post(self._client.get_url("/kv/put"), json=encoded)["header"]["revision"])

    def watch(self, start: int) -> Iterator[Change]:
        from etcd3gw.watch import Watcher

        told: queue.Queue[Any] = queue.Queue()
        end = PREFIX[:-1] + chr(ord(PREFIX[-1]) + 1)
        watcher = Watcher(self._client, PREFIX, told.put, range_end=end, start_revision=start)
        try:
            while True:
                kv = told.get(timeout=SILENCE_S)["kv"]
                yield kv["key"].decode(), kv.get("value", b"").decode(), int(kv["mod_revision"])
        finally:
            watcher.stop()


class Etcdctl:
    """By the command; ``CLIENT`` is its path."""

    def __init__(self) -> None:
        self._command = [CLIENT, f"--endpoints={','.join(ENDPOINTS)}", f"--command-timeout={TIMEOUT_S}s"]

    def change_endpoint(self) -> None:
        """It knows all of them."""

    def put(self, key: str, value: str) -> int:
        ran = subprocess.run([*self._command, "put", key, value, "-w", "json"], capture_output=True, text=True)
        if ran.returncode:
            raise OSError(ran.stderr)
        return int(json.loads(ran.stdout)["header"]["revision"])

    def watch(self, start: int) -> Iterator[Change]:
        command = [*self._command, "watch", PREFIX, "--prefix", f"--rev={start}", "-w", "json"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            for line in process.stdout:
                for event in json.loads(line).get("Events") or ():
                    kv = event["kv"]
                    yield text(kv["key"]), text(kv.get("value", "")), kv["mod_revision"]
        finally:
            process.kill()
            process.communicate()


KINDS: dict[str, Any] = {"etcd3": Etcd3, "etcd3gw": Etcd3Gateway}


def follow(revision: int) -> None:
    """Tell of all changes after a revision, until a key says that it is the end."""
    client = KINDS.get(CLIENT, Etcdctl)()
    while True:
        try:
            for key, value, changed in client.watch(revision + 1):
                say(kind="event", key=key, value=value, revision=changed)
                revision = changed
                if key == PREFIX + "end":
                    return
        except Exception as error:
            say(kind="watch ended", error=repr(error))
        time.sleep(0.1)
        client.change_endpoint()


def main() -> None:
    client = KINDS.get(CLIENT, Etcdctl)()

    def put(key: str, value: str) -> int | Exception:
        try:
            return client.put(key, value)  # type: ignore[no-any-return]
        except Exception as error:
            time.sleep(0.02)
            client.change_endpoint()
            return error

    begun: int | Exception = ValueError()
    while isinstance(begun, Exception):
        begun = put(PREFIX + "begin", "")
    say(kind="begin", revision=begun)
    watching = threading.Thread(target=follow, args=(begun,))
    watching.start()
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), over.set()), daemon=True).start()
    for number in itertools.count():
        if over.is_set():
            break
        key, value = f"{PREFIX}{number % 5}", str(number)
        outcome = put(key, value)
        failed = isinstance(outcome, Exception)
        say(kind="put", key=key, value=value, **({"error": repr(outcome)} if failed else {"revision": outcome}))
        time.sleep(0.01)
    ended: int | Exception = ValueError()
    while isinstance(ended, Exception):
        ended = put(PREFIX + "end", "")
    watching.join()


main()
