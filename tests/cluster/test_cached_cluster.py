"""Local copies on a real cluster: read-your-writes over processes and through the deaths of leaders."""

from __future__ import annotations

import sys

import ray

import raykeeper
from lab.ray.tools import Made, kill, leader

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@ray.remote
def write(name: str, number: int) -> list[int]:
    """Two writes of a process of its own: one under the prefix, one elsewhere; their revisions."""
    with raykeeper.connect(name) as kv:
        return [kv.put(f"a/{number}", str(number)).revision, kv.put("elsewhere", "x").revision]


def test_what_others_wrote_is_seen_at_their_revision_while_leaders_die(clusters: Made) -> None:
    cluster = clusters.launch()
    with cluster.client() as kv, kv.cached("a/") as copy:
        newest = 0
        for number in range(4):
            if number % 2:
                kill(leader(cluster).pid)
            inside, outside = ray.get(write.remote(cluster.name, number), timeout=90)
            found = copy.get(f"a/{number}", at_least=inside, timeout=60)
            assert found is not None
            assert (found.raw, found.mod_revision) == (str(number).encode(), inside)
            whole = copy.range(at_least=outside, timeout=60)
            assert whole.revision >= outside > newest
            assert [item.key for item in whole] == [b"a/%d" % n for n in range(number + 1)]
            newest = whole.revision
        assert copy.range(at_least=kv.revision(timeout=60), timeout=60).items == kv.range(prefix="a/").items
