"""The handle against a real cluster: from drivers, tasks, actors, threads and coroutines; and how it says no."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import ray

import raykeeper
from raykeeper import Compare, Op

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def kv(shared: Any, request: pytest.FixtureRequest) -> Any:
    """A handle that sees nothing of the other tests."""
    with shared.client() as client:
        yield client.namespace(f"{request.node.name}/")


def test_put_get_delete(kv: Any) -> None:
    assert kv.get("a") is None
    first = kv.put("a", "1")
    second = kv.put("a", b"2", prev=True)
    assert second.revision > first.revision
    assert second.prev.value == b"1"
    item = kv.get("a")
    assert (item.key, item.value, item.version) == (b"a", b"2", 2)
    assert (item.create_revision, item.mod_revision) == (first.revision, second.revision)
    assert kv.get("a", revision=first.revision).text == "1"
    assert kv.delete("a").deleted == 1
    assert kv.get("a") is None


def test_keys_of_any_bytes_and_the_empty_value(kv: Any) -> None:
    keys = [b"\x00", b"\xff\xff", bytes(range(256)), "schlüssel".encode()]
    for key in keys:
        kv.put(key, b"")
    assert [item.key for item in kv.range(prefix=b"")] == sorted(keys)
    assert all(item.value == b"" for item in kv.range(prefix=b""))


def test_from_a_task(kv: Any) -> None:
    @ray.remote(num_cpus=0)
    def task(handle: Any) -> bytes:
        handle.put("from-task", "hello")
        return bytes(handle.get("from-task").value)

    assert ray.get(task.remote(kv), timeout=60) == b"hello"
    assert kv.get("from-task").text == "hello"


def test_from_an_actor_that_connects_by_itself(kv: Any, shared: Any) -> None:
    @ray.remote(num_cpus=0)
    class Actor:
        def __init__(self, name: str, prefix: bytes) -> None:
            self.kv = raykeeper.connect(name).namespace(prefix)

        def put(self, key: str, value: str) -> int:
            return int(self.kv.put(key, value).revision)

    actor = Actor.remote(shared.name, kv.prefix)
    revision = ray.get(actor.put.remote("from-actor", "hi"), timeout=60)
    assert kv.get("from-actor").mod_revision == revision


def test_from_an_async_actor(kv: Any) -> None:
    @ray.remote(num_cpus=0)
    class Actor:
        async def put_many(self, handle: Any, count: int) -> int:
            results = await asyncio.gather(*(handle.aio.put(f"k{n}", str(n)) for n in range(count)))
            return len({result.revision for result in results})

    assert ray.get(Actor.remote().put_many.remote(kv, 50), timeout=60) == 50
    assert kv.range(prefix="k", count_only=True).count == 50


def test_from_many_threads(kv: Any) -> None:
    def work(n: int) -> bool:
        kv.put(f"t{n}", str(n))
        return bool(kv.get(f"t{n}").text == str(n))

    with ThreadPoolExecutor(32) as threads:
        assert all(threads.map(work, range(200)))
    assert kv.range(prefix="t", count_only=True).count == 200


def test_as_coroutines(kv: Any) -> None:
    async def main() -> None:
        aio = kv.aio
        await asyncio.gather(*(aio.put(f"c{n}", str(n)) for n in range(100)))
        got = await asyncio.gather(*(aio.get(f"c{n}") for n in range(100)))
        assert [item.text for item in got] == [str(n) for n in range(100)]
        assert (await aio.range(prefix="c", count_only=True)).count == 100
        assert (await aio.txn(compare=[Compare.version("c1") == 1], success=[Op.delete("c1")])).succeeded
        assert await aio.get("c1") is None

    asyncio.run(main())


def test_a_handle_pickles_with_its_view_and_nothing_else(kv: Any) -> None:
    data = cloudpickle.dumps(kv.with_codec(raykeeper.codec.JSON))
    assert len(data) < 1000
    copy = cloudpickle.loads(data)
    copy.put("p", {"a": [1, 2]})
    assert kv.get("p").text == '{"a":[1,2]}'
    assert copy.get("p").value == {"a": [1, 2]}


def test_namespaces_see_only_their_prefix(kv: Any) -> None:
    inner = kv.namespace("in/")
    inner.put("x", "1")
    kv.put("x", "2")
    assert kv.get("in/x").text == "1"
    assert [item.key for item in inner.range(prefix=b"")] == [b"x"]
    assert inner.delete(prefix=b"").deleted == 1
    assert kv.get("x").text == "2"


def test_transactions(kv: Any) -> None:
    kv.put("a", "1")
    done = kv.txn(
        compare=[Compare.value("a") == "1", Compare.version("b") == 0],
        success=[Op.put("b", "2"), Op.get("a"), Op.txn(success=[Op.delete("a", prev=True)])],
        failure=[Op.put("c", "3")],
    )
    assert done.succeeded
    assert done.responses[1].value == b"1"
    again = kv.txn(compare=[Compare.value("a") == "1"], success=[], failure=[Op.get("b"), Op.get("c")])
    assert not again.succeeded
    assert again.responses[0].text == "2"
    assert again.responses[1] is None


def test_a_request_id_is_good_for_one_effect(kv: Any) -> None:
    first = kv.put("r", "1", request_id="job-7")
    assert kv.put("r", "1", request_id="job-7").revision == first.revision
    assert kv.get("r").version == 1


def test_long_ranges_come_in_pages_of_one_revision(kv: Any) -> None:
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda n: kv.put(f"{n:05}", "x"), range(2500)))
    stop = threading.Event()

    def disturb() -> None:
        n = 0
        while not stop.is_set():
            kv.put(f"{n % 2500:05}", "y")
            kv.put(f"{n:05}-new", "z")
            n += 1

    disturber = threading.Thread(target=disturb)
    disturber.start()
    try:
        result = kv.range(prefix=b"")
    finally:
        stop.set()
        disturber.join()
    assert len(result.items) == result.count >= 2500
    assert not result.more
    assert max(item.mod_revision for item in result) <= result.revision
    again = kv.range(prefix=b"", revision=result.revision)
    assert [(item.key, item.value) for item in again] == [(item.key, item.value) for item in result]


def test_large_values_up_to_the_limit(kv: Any) -> None:
    value = os.urandom(1_400_000)
    kv.put("large", value)
    assert kv.get("large").value == value


def test_serializable_reads_do_not_go_back_behind_what_was_seen(kv: Any) -> None:
    for n in range(50):
        revision = kv.put("s", str(n)).revision
        assert kv.get("s", serializable=True, at_least=revision).text == str(n)


def test_compaction(kv: Any) -> None:
    first = kv.put("c", "1").revision
    kv.put("c", "2")
    now = kv.revision()
    kv.compact(now)
    with pytest.raises(raykeeper.CompactedError) as caught:
        kv.get("c", revision=first)
    assert caught.value.compact_revision == now
    assert kv.get("c").text == "2"
    with pytest.raises(raykeeper.FutureRevisionError):
        kv.get("c", revision=now + 1_000_000)


# --- how it says no --------------------------------------------------------------------------------------------------


def test_no_such_cluster(local_ray: Path) -> None:
    with pytest.raises(raykeeper.ClusterNotFound, match="no-such-cluster"):
        raykeeper.connect("no-such-cluster")


def test_no_ray_to_attach_to() -> None:
    program = (
        "import raykeeper\n"
        "try:\n    raykeeper.connect('default')\n"
        "except raykeeper.ClusterNotFound as error:\n    print('typed:', error.applied, error)\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY")}
    environment["RAY_ADDRESS"] = "127.0.0.1:1"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.startswith("typed: False"), done
    assert "127.0.0.1:1" in done.stdout


def test_a_request_over_the_limit(kv: Any) -> None:
    for act in (lambda: kv.put("big", b"x" * 2_000_000), lambda: kv.put(b"k" * 100_000, b"")):
        with pytest.raises(raykeeper.RequestTooLarge) as caught:
            act()
        assert caught.value.applied is False
    with pytest.raises(raykeeper.RequestTooLarge):
        kv.txn(success=[Op.put(f"k{n}", "") for n in range(200)])
    assert kv.get("big") is None


@pytest.mark.parametrize("key", [1, None, 1.5, ["a"], object()])
def test_a_key_that_is_no_str_or_bytes(kv: Any, key: Any) -> None:
    for act in (lambda: kv.put(key, "v"), lambda: kv.txn(success=[Op.put(key, "v")])):
        with pytest.raises(raykeeper.InvalidArgument) as caught:
            act()
        assert isinstance(caught.value, ValueError)


def test_neither_or_both_of_key_and_prefix(kv: Any) -> None:
    with pytest.raises(raykeeper.InvalidArgument):
        kv.range()
    with pytest.raises(raykeeper.InvalidArgument):
        kv.delete()
    for act in (kv.range, kv.delete):
        with pytest.raises(raykeeper.InvalidArgument):
            act("a", prefix="b")


def test_a_closed_handle(shared: Any) -> None:
    client = shared.client()
    client.put("closing", "1")
    client.close()
    for act in (lambda: client.put("closing", "2"), lambda: client.get("closing"), lambda: cloudpickle.dumps(client)):
        with pytest.raises(raykeeper.InvalidArgument, match="closed"):
            act()


def test_a_timeout_of_zero(kv: Any) -> None:
    with pytest.raises(raykeeper.RequestTimeout) as caught:
        kv.put("zero", "1", timeout=0)
    assert caught.value.applied is False
    with pytest.raises(raykeeper.RequestTimeout):
        kv.get("zero", timeout=0)
    assert kv.get("zero") is None
