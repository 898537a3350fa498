"""The console's page in a real browser, over real processes: it stays live while the leader is killed."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from typing import Any

import pytest
import ray

from lab.browser import browser
from lab.ray.proxies import Proxies
from lab.ray.tools import Made, leader, wait_until


@pytest.mark.survival
def test_the_page_follows_the_cluster_while_its_leader_is_killed(clusters: Made) -> None:
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
            wait_until(lambda: (next_leader(ask, second["term"]) or second)["id"] == first.id, what="the chosen leader")
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
