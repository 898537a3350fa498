"""The console's page in a real browser: each view shows what the API says, as text, at any width; actions ask back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from lab.browser import SCHEMES, VIEWS, WIDTHS, OpenConsole, browser
from lab.http2.etcd_port import EtcdPort, etcd_port
from lab.http2.http_client import request
from lab.onemember import in_thread
from lab.patience import PATIENCE, until
from raykeeper.actors.client import hub_pool
from raykeeper.schema.operator_frames import MemberStatus

TTL = 300.0
MARKUP = '<img src=x onerror="window.hacked=1"><svg onload=window.hacked=1>\'"&amp;'
PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def open_console() -> Iterator[OpenConsole]:
    with browser() as opened:
        yield opened


def ask(port: EtcdPort, view: str) -> Any:
    reply = request(port.endpoint, "GET", f"/console/api/{view}")
    assert reply.status == 200, reply
    return json.loads(reply.body)


def fill(port: EtcdPort) -> list[Any]:
    """Something in every view, markup in its names and values; what must be kept, to keep it in use."""
    kv = port.proxy.kv
    for number in range(3):
        kv.put("jobs/a", f"state {number}")
    kv.put(f"jobs/{MARKUP}", MARKUP)
    kv.put("wide/" + "w" * 400, "v" * 3000)
    kv.put(b"raw\xff", b"\x00\x01")
    lock, waits = kv.lock(f"lock {MARKUP}", ttl=TTL), kv.lock(f"lock {MARKUP}", ttl=TTL)
    assert lock.acquire()
    waiting = in_thread(waits.acquire)
    long = kv.lock("l" * 300, ttl=TTL)
    assert long.acquire()
    election = kv.election("scheduler", ttl=TTL)
    election.campaign(MARKUP)
    semaphore = kv.semaphore("gpus", 2, ttl=TTL)
    assert semaphore.acquire()
    kv.queue("tasks", ttl=TTL).put("first")
    barrier = kv.barrier("start", 2, ttl=TTL)
    arriving = in_thread(lambda: barrier.wait(PATIENCE))
    registered = kv.registry("services").register("billing", "10.0.0.1:80", ttl=TTL)
    until(lambda: len(ask(port, "locks")["locks"]) == 2 and ask(port, "barriers")["barriers"])
    until(lambda: any(each["waiters"] for each in ask(port, "locks")["locks"]))
    return [lock, waits, waiting, long, election, semaphore, barrier, arriving, registered]


def expected(port: EtcdPort, view: str) -> list[str]:
    """Texts that a view must show, from the API."""
    if view == "cluster":
        return [ask(port, "cluster")["members"][0]["name"], "m1 leads in term"]
    if view == "keys":
        return [each["key"] for each in ask(port, "keys")["entries"]]
    if view == "leases":
        return [each["id"] for each in ask(port, "leases")["leases"]]
    if view == "load":
        return ["Clients", "Prefixes", "Slow requests of late"]
    if view == "clients":
        return [each["session"] for each in ask(port, "clients")["clients"]]
    found = ask(port, view)[view]
    assert found, view
    return [each["name"] for each in found] + [
        text
        for each in found
        for one in (*each["holders"], *each["waiters"])
        for text in (str(one["token"]), f"pid {one['pid']} on {one['host']}", one["what"])
    ]


def test_each_view_shows_what_the_api_says_as_text_at_any_width(open_console: OpenConsole) -> None:
    with etcd_port(console="act") as port:
        kept = fill(port)
        grounds = set()
        for scheme in SCHEMES:
            for width in WIDTHS:
                console = open_console(port.endpoint, width, scheme)
                for view in VIEWS:
                    console.open(view)
                    console.wait_for(*expected(port, view))
                    assert console.overflow() <= 0, (view, width)
                    until(console.current_in_sight, what=f"{view} is in sight at {width} pixels")
                    assert console.page.inner_text("#state") == "Healthy"
                console.open("keys?key=jobs%2Fa")
                console.wait_for("state 2", "state 1", "state 0", "version 3")
                assert console.overflow() <= 0, width
                grounds.add((scheme, console.page.evaluate("getComputedStyle(document.body).backgroundColor")))
                assert console.complaints == []
                console.page.context.close()
        assert len({ground for _, ground in grounds}) == len(grounds) == 2

        console = open_console(port.endpoint, max(WIDTHS))
        console.open(VIEWS[-1])
        console.wait_for(*expected(port, VIEWS[-1]))
        console.page.set_viewport_size({"width": min(WIDTHS), "height": 760})
        until(console.current_in_sight, what="the present view is in sight once the window is narrow")

        console = open_console(port.endpoint)
        console.open("keys")
        console.page.click("text=jobs/")
        console.page.click(f"[role=treeitem]:has-text({json.dumps('<img')})")
        console.page.wait_for_selector("pre")
        assert console.page.inner_text("pre") == MARKUP
        assert console.page.inner_text(".detail h2") == f"jobs/{MARKUP}"
        assert console.page.evaluate("window.hacked") is None
        assert console.page.locator("main img, main script").count() == 0
        console.page.click("text=Follow changes")
        console.page.wait_for_selector("#tail >> text=Nothing has changed")
        port.proxy.kv.put("jobs/new", MARKUP)
        console.wait_for(f"jobs/new = {MARKUP}", "1 so far")
        assert console.complaints == []
        assert kept


def test_since_when_members_have_their_roles_or_are_lost(
    open_console: OpenConsole, monkeypatch: pytest.MonkeyPatch
) -> None:
    with etcd_port(console="read") as port:
        calls = port.proxy.services.calls
        status = calls.status
        lost = {2: time.time() - 4 * 86_400}

        async def changed(member: int) -> MemberStatus | None:
            found = await status(member)
            if found is None:
                return None
            more = {"voters": (1, 2), "lost_since": lost, "silent": {2: 5.0}, "role_for": 400.0}
            return msgspec.structs.replace(found, **more)

        monkeypatch.setattr(calls, "status", changed)
        for width in WIDTHS:
            console = open_console(port.endpoint, width)
            console.open("cluster")
            console.wait_for("for 7 min", "lost for 4.0 d", "m2 does not serve: it does not answer")
            assert "silent for" not in console.text()
            assert console.overflow() <= 0, width
            assert console.complaints == []
            console.page.context.close()


def test_an_action_asks_back_and_is_done_only_then(open_console: OpenConsole) -> None:
    with etcd_port(console="act") as port:
        kv = port.proxy.kv
        first, second = kv.lock("a", ttl=TTL), kv.lock("a", ttl=TTL)
        assert first.acquire()
        waiting = in_thread(second.acquire)
        until(lambda: ask(port, "locks")["locks"][0]["waiters"])
        console = open_console(port.endpoint)
        page = console.page
        console.open("locks")
        holds = f"tr[data-key='{first.token}']"
        page.click(f"{holds} >> text=Release")
        page.wait_for_selector("dialog[open] >> text=Release lock a?")
        assert page.evaluate("document.activeElement.textContent") == "Cancel"
        page.keyboard.press("Escape")
        page.wait_for_selector("dialog[open]", state="detached")
        assert ask(port, "locks")["locks"][0]["holders"][0]["token"] == first.token
        page.click(f"{holds} >> text=Release")
        page.click("dialog >> button.danger")
        waiting.result(PATIENCE)
        page.wait_for_selector(holds, state="detached")
        console.wait_for(str(second.token), "1 held")
        until(lambda: first.lost.is_set())

        page.keyboard.press("1")
        page.wait_for_selector("main h1:text-is('Cluster')")
        page.click("text=Compact history")
        revision = int(page.input_value("dialog input"))
        page.click("dialog >> button.danger")
        console.wait_for(f"history from {revision:,}")
        assert ask(port, "cluster")["compact_revision"] == revision
        page.click("text=Add a member")
        page.click("dialog >> text=Add a member >> nth=-1")
        page.wait_for_selector("dialog[open]", state="detached")
        assert port.proxy.operations.asked == [("add", False)]
        assert console.complaints == []


def test_it_asks_who_is_there_and_shows_what_that_one_may_see(open_console: OpenConsole) -> None:
    with etcd_port(console="read") as port:
        users = port.proxy.kv.users
        port.proxy.kv.put("team/a", "seen by ann")
        for name in ("root", "ann"):
            users.add(name, PASSWORD)
        users.grant_role("root", "root")
        users.add_role("team")
        users.grant_permission("team", "readwrite", prefix="team/")
        users.grant_role("ann", "team")
        users.enable()
        try:
            console = open_console(port.endpoint, 400)
            page = console.page
            page.goto(f"http://{port.endpoint}/console")

            def log_in(name: str, password: str) -> None:
                page.fill("input[name=name]", name)
                page.fill("input[name=password]", password)
                page.click("form.login button")

            log_in("ann", "wrong")
            page.wait_for_selector("[role=alert]:has-text('authentication failed')")
            log_in("ann", PASSWORD)
            page.wait_for_selector("main h1:text-is('Cluster')")
            console.wait_for("m1", "The events are for users with the role root.")
            assert page.locator("main button").count() == 0
            assert page.context.cookies() == []
            for view in ("keys", "locks", "clients"):
                page.evaluate(f"location.hash = '#/{view}'")
                console.wait_for("This user may not see that.")
            page.evaluate("location.hash = '#/keys?prefix=team%2F&key=team%2Fa'")
            console.wait_for("seen by ann")
            page.click("text=Log out")
            page.wait_for_selector("form.login")
            assert "seen by ann" not in console.text()
            log_in("root", PASSWORD)
            console.wait_for("seen by ann")
            page.evaluate("location.hash = '#/clients'")
            page.wait_for_selector("main h1:text-is('Clients')")
            page.reload()
            page.wait_for_selector("form.login")
        finally:
            hub_pool._close_all()
