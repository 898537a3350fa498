"""The console's page in a real browser, over real processes: it stays live while the leader is killed."""

from __future__ import annotations

import json
import os
import signal
import sys
import urllib.request
from typing import Any

import pytest
import ray

from lab.browser import browser
from lab.ray.proxies import Proxies
from lab.ray.tools import Made, leader, wait_until
from raykeeper import Client

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Worker:
    """Holds a lock."""

    def __init__(self, kv: Client) -> None:
        self.kv = kv

    def take(self, name: str) -> int:
        self.lock = self.kv.lock(name, ttl=60)
        self.lock.acquire()
        return os.getpid()


@pytest.mark.survival
def test_the_page_follows_the_cluster_while_its_leader_is_killed(clusters: Made, stopped: list[int]) -> None:
    with browser() as open_console:
        cluster = clusters.launch()
        first = leader(cluster)
        proxies = Proxies(cluster)
        try:
            endpoint = proxies.start("127.0.0.1:0", "--console", "act")

            def ask(view: str) -> Any:
                with urllib.request.urlopen(f"http://{endpoint}/console/api/{view}", timeout=60) as answer:
                    return json.load(answer)

            console = open_console(endpoint)
            page = console.page
            console.open("cluster")
            address = ray.nodes()[0]["NodeManagerAddress"]
            rows = [f"pid {member.pid}" for member in cluster.status().members]
            console.wait_for(*rows, address, f"{first.name} leads in term {first.term}")
            page.evaluate("window.loaded = 'once'")

            os.kill(first.pid, signal.SIGKILL)
            wait_until(lambda: ask_later(ask)["term"] > first.term, what="another term")
            second = wait_until(lambda: next_leader(ask, first.term), what="another leader")
            console.wait_for(f"{second['name']} leads in term {second['term']}")
            wait_until(lambda: page.inner_text("#state") == "Healthy", what="three members that serve")
            assert page.evaluate("window.loaded") == "once"
            shown = page.inner_text("tbody")
            assert f"pid {first.pid}" not in shown
            assert all(f"pid {member['pid']}" in shown for member in ask("cluster")["members"])

            page.click(f"tbody tr:has-text('{first.name}') >> text=Lead")
            page.click("dialog >> text=Move the leader")
            console.wait_for(f"{first.name} leads in term", "follower")
            wait_until(lambda: (next_leader(ask, second["term"]) or second)["id"] == first.id, what="the chosen leader")

            kv = cluster.client()
            actor: Any = ray.remote(num_cpus=0)(Worker)
            holder = actor.options(name="the-holder").remote(kv)
            pid = ray.get(holder.take.remote("nightly"))
            page.keyboard.press("3")
            job = ray.get_runtime_context().get_job_id()
            console.wait_for("nightly", "actor the-holder", f"pid {pid} on", address, "Worker.take", f"job {job}")
            os.kill(pid, signal.SIGSTOP)
            stopped.append(pid)
            wait_until(lambda: page.locator("tr.stuck").count() == 1, seconds=180, what="a stuck holder")
            assert "stuck: silent for" in console.text()
            page.click("tr.stuck >> text=Release")
            page.click("dialog >> button.danger")
            console.wait_for("No lock is held.")
        finally:
            proxies.end()


def ask_later(ask: Any) -> Any:
    """The cluster; while no member answers, one in term 0."""
    try:
        return ask("cluster")
    except OSError:
        return {"term": 0, "leader": 0, "members": []}


def next_leader(ask: Any, term: int) -> Any:
    """The member that leads in a later term, if one does."""
    found = ask_later(ask)
    leads = [each for each in found["members"] if each["id"] == found["leader"] and each["term"] > term]
    return leads[0] if leads else None
