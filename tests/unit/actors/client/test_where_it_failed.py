"""An error of a call that nobody answered says of which cluster, and which member was asked last and why it did not."""

from __future__ import annotations

import pytest

from lab.client.dispatch_play import Play
from lab.onemember import one_member
from lab.patience import failure
from raykeeper import KeeperError
from raykeeper.errors import Unavailable


def test_of_a_call_without_an_answer_the_cluster_is_named() -> None:
    with one_member() as member, member.client() as kv:
        kv.put("a", "1")
        member.cut = True
        for call in (lambda: kv.put("a", "2", timeout=0.2), lambda: kv.time_to_live(1, timeout=0.2)):
            failure(call, KeeperError, f"cluster {member.name!r}")
        member.cut = False


@pytest.mark.parametrize(("name", "said"), [("jobs", "cluster 'jobs'"), ("", "the cluster")])
@pytest.mark.parametrize("call", ["write", "read"])
def test_of_a_member_that_does_not_answer_the_name(name: str, said: str, call: str) -> None:
    play = Play(leader=2, members=(2,), cluster=name)
    found = play.put(timeout=3.0) if call == "write" else play.read(timeout=3.0)
    play.wait(4.0)
    (error,) = found
    assert isinstance(error, Unavailable)
    assert str(error) == f"no quorum of {said} answered the {call} in time (m2 does not answer)"
