"""The members' answers about load, as one."""

from __future__ import annotations

from raykeeper.actors.client.load_tables import SlowInfo, merged
from raykeeper.schema.client_identity import ClientIdentity
from raykeeper.schema.operator_frames import ClientLoad, ClientStatus, Load, LoadShown, PrefixLoad, SlowRequest


def test_a_client_is_one_whichever_member_it_asks() -> None:
    """The leader knows its session, a follower on its host only its process."""
    identity = ClientIdentity(host="rk1", pid=4711)
    leader = LoadShown(
        "rk2",
        (ClientLoad(12, "", 0, ClientStatus(12, identity, True, 0, ""), Load(5, 1, 0, 100)),),
        (PrefixLoad(b"ujobs/", Load(5, 1, 0, 100)), PrefixLoad(b"rlock/", Load(9, 0, 0, 10))),
        (SlowRequest(2000.0, 0.5, "put of 'a'"),),
    )
    follower = LoadShown(
        "rk1",
        (
            ClientLoad(0, "process 4711", 4711, None, Load(0, 4, 2, 50)),
            ClientLoad(0, "process 9", 9, None, Load(0, 1, 0, 5)),
        ),
        (PrefixLoad(b"ujobs/", Load(0, 4, 2, 50)), PrefixLoad(b"...", Load(0, 1, 0, 5)), PrefixLoad(b"u", Load(0, 1))),
        (SlowRequest(1000.0, 0.2, "read of 'b'"),),
    )
    for answers in ({1: leader, 2: follower}, {2: follower, 1: leader}):
        top = merged(answers, ("m3",), 10)
        assert [(each.client and each.client.session, each.source) for each in top.clients] == [
            (12, "session 12"),
            (None, "process 9"),
        ]
        first = top.clients[0]
        assert (first.puts, first.gets, first.events, first.bytes) == (5, 5, 2, 150)
        assert {(each.prefix, each.reserved, each.puts, each.gets) for each in top.prefixes} == {
            (b"jobs/", False, 5, 5),
            (b"lock/", True, 9, 0),
            (b"...", False, 0, 1),
            (b"", False, 0, 1),
        }
        assert top.slow == (SlowInfo("m2", 1000.0, 0.2, "read of 'b'"), SlowInfo("m1", 2000.0, 0.5, "put of 'a'"))
        assert top.silent == ("m3",)
    assert len(merged({1: leader, 2: follower}, (), 1).prefixes) == 1
