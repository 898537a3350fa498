"""Strategies of hypothesis for requests to etcd's services, for sequences that a real etcd and a proxy both get.

Keys, revisions and leases are few, so that requests meet; mistakes are rare, since what is refused hides what comes
after it. Revisions are relative to the sequence's base (``lab/etcd_twins.py``).
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from lab.etcd_twins import RELATIVE
from raykeeper.actors.proxy.etcdpb.election_pb2 import (
    CampaignRequest,
    LeaderKey,
    LeaderRequest,
    ProclaimRequest,
    ResignRequest,
)
from raykeeper.actors.proxy.etcdpb.lock_pb2 import LockRequest, UnlockRequest
from raykeeper.actors.proxy.etcdpb.rpc_pb2 import (
    CompactionRequest,
    Compare,
    DeleteRangeRequest,
    LeaseGrantRequest,
    LeaseLeasesRequest,
    LeaseRevokeRequest,
    LeaseTimeToLiveRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
    WatchCreateRequest,
    WatchRequest,
)

# --- keys ------------------------------------------------------------------------------------------------------------

keys = st.sampled_from([b"a", b"aa", b"b", b"c", b"\0", b"\xff", b"d/1", b"d/2"])


def mostly(usual: st.SearchStrategy[Any], rare: Any, times: int = 24) -> st.SearchStrategy[Any]:
    """A value, or, one time in so many, a rare one. What is refused hides what comes after it."""
    return st.integers(0, times - 1).flatmap(lambda n: st.just(rare) if n == times - 1 else usual)


some_keys = mostly(mostly(keys, b"", 40), b"k" * 17_000, 200)
ends = st.sampled_from([b"", b"", b"\0", b"b", b"c", b"e", b"\xff", b"a\0"])
values = st.sampled_from([b"", b"1", b"2", b"long" * 300])
leases = mostly(st.sampled_from([0, 0, 0, 0, 7, -5, -1]), 99)
offsets = st.integers(-3, 12)
relative = offsets.map(lambda n: RELATIVE + n)
revisions = st.one_of(
    st.just(0), st.just(0), st.just(0), st.just(-1), st.integers(0, 3).map(lambda n: RELATIVE + n), relative
)
flags = st.booleans()
rarely = mostly(st.just(False), True, 8)
bounds = st.one_of(*[st.just(0)] * 7, relative)

ranges = st.builds(
    RangeRequest,
    key=some_keys,
    range_end=ends,
    limit=st.sampled_from([0, 0, 1, 2, 5, -1]),
    revision=revisions,
    sort_order=st.integers(0, 2),
    sort_target=st.integers(0, 4),
    serializable=flags,
    keys_only=rarely,
    count_only=rarely,
    min_mod_revision=bounds,
    max_mod_revision=bounds,
    min_create_revision=bounds,
    max_create_revision=bounds,
)


def put_request(mistaken: bool, **fields: Any) -> PutRequest:
    if not mistaken:
        fields["value"] = b"" if fields["ignore_value"] else fields["value"]
        fields["lease"] = 0 if fields["ignore_lease"] else fields["lease"]
    return PutRequest(**fields)


puts = st.builds(
    put_request,
    rarely,
    key=some_keys,
    value=values,
    lease=leases,
    prev_kv=flags,
    ignore_value=rarely,
    ignore_lease=rarely,
)
deletes = st.builds(DeleteRangeRequest, key=some_keys, range_end=ends, prev_kv=flags)
numbers = st.one_of(st.integers(-1, 3), relative)
operands = st.one_of(
    numbers.map(lambda n: {"version": n}),
    numbers.map(lambda n: {"create_revision": n}),
    numbers.map(lambda n: {"mod_revision": n}),
    values.map(lambda v: {"value": v}),
    leases.map(lambda n: {"lease": n}),
    st.just({}),
)
compares = st.builds(
    lambda operand, **others: Compare(**others, **operand),
    operands,
    result=mostly(st.integers(0, 3), 4, 40),
    target=mostly(st.integers(0, 4), 5, 40),
    key=some_keys,
    range_end=ends,
)


plain_operations = st.one_of(
    puts.map(lambda request: RequestOp(request_put=request)),
    puts.map(lambda request: RequestOp(request_put=request)),
    ranges.map(lambda request: RequestOp(request_range=request)),
    deletes.map(lambda request: RequestOp(request_delete_range=request)),
)
operations = st.recursive(
    mostly(plain_operations, RequestOp(), 60),
    lambda inner: st.builds(
        lambda *parts: RequestOp(request_txn=TxnRequest(compare=parts[0], success=parts[1], failure=parts[2])),
        st.lists(compares, max_size=2),
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=2),
    ),
    max_leaves=6,
)
txns = st.builds(
    TxnRequest,
    compare=st.lists(compares, max_size=2),
    success=st.lists(operations, max_size=3),
    failure=st.lists(operations, max_size=2),
)
kv_requests = st.one_of(
    st.tuples(st.just("/etcdserverpb.KV/Put"), puts),
    st.tuples(st.just("/etcdserverpb.KV/Put"), puts),
    st.tuples(st.just("/etcdserverpb.KV/Put"), puts),
    st.tuples(st.just("/etcdserverpb.KV/Range"), ranges),
    st.tuples(st.just("/etcdserverpb.KV/Range"), ranges),
    st.tuples(st.just("/etcdserverpb.KV/DeleteRange"), deletes),
    st.tuples(st.just("/etcdserverpb.KV/Txn"), txns),
    st.tuples(st.just("/etcdserverpb.KV/Txn"), txns),
    st.tuples(
        st.just("/etcdserverpb.KV/Compact"),
        st.builds(
            CompactionRequest,
            revision=st.one_of(st.integers(0, 4).map(lambda n: RELATIVE + n), relative, st.just(-1), st.just(0)),
        ),
    ),
)

# --- leases ----------------------------------------------------------------------------------------------------------

lease_requests = st.one_of(
    st.tuples(
        st.just("/etcdserverpb.Lease/LeaseGrant"),
        st.builds(
            LeaseGrantRequest,
            TTL=st.sampled_from([1000, 1001, 9_000_000_000, 9_000_000_001]),
            ID=st.sampled_from([7, -5, -1, 1 << 62, -(1 << 63)]),
        ),
    ),
    st.tuples(st.just("/etcdserverpb.Lease/LeaseRevoke"), st.builds(LeaseRevokeRequest, ID=leases)),
    st.tuples(
        st.just("/etcdserverpb.Lease/LeaseTimeToLive"),
        st.builds(LeaseTimeToLiveRequest, ID=leases, keys=flags),
    ),
    st.tuples(st.just("/etcdserverpb.Lease/LeaseLeases"), st.just(LeaseLeasesRequest())),
)
"""None of these leases ends by itself while a sequence lasts."""
short_leases = st.tuples(
    st.just("/etcdserverpb.Lease/LeaseGrant"),
    st.builds(
        LeaseGrantRequest, TTL=st.sampled_from([-1, 0, 1, 3, 1000, 9_000_000_001]), ID=st.sampled_from([7, -5, -1])
    ),
)

# --- locks and elections ---------------------------------------------------------------------------------------------

names = st.sampled_from([b"d", b"a", b"e/x", b""])
holders = mostly(st.sampled_from([7, -5]), 99, 12)
leaders = st.builds(
    lambda name, lease, rev, key: LeaderKey(name=name, lease=lease, rev=rev, key=name + key),
    names,
    holders,
    st.one_of(offsets.map(lambda n: RELATIVE + n), st.sampled_from([0, -1])),
    st.sampled_from([b"/7", b"/fffffffffffffffb", b""]),
)
contests = st.one_of(
    st.tuples(st.just("/v3lockpb.Lock/Lock"), st.builds(LockRequest, name=names, lease=holders)),
    st.tuples(
        st.just("/v3lockpb.Lock/Unlock"),
        st.builds(UnlockRequest, key=st.sampled_from([b"d/7", b"a/7", b"e/x/fffffffffffffffb", b"a", b""])),
    ),
    st.tuples(
        st.just("/v3electionpb.Election/Campaign"), st.builds(CampaignRequest, name=names, lease=holders, value=values)
    ),
    st.tuples(
        st.just("/v3electionpb.Election/Proclaim"),
        st.builds(ProclaimRequest, leader=st.one_of(st.none(), leaders), value=values),
    ),
    st.tuples(st.just("/v3electionpb.Election/Resign"), st.builds(ResignRequest, leader=st.one_of(st.none(), leaders))),
    st.tuples(st.just("/v3electionpb.Election/Leader"), st.builds(LeaderRequest, name=names)),
)

# --- watches ---------------------------------------------------------------------------------------------------------

PROGRESS = WatchRequest(progress_request={})


def create(**fields: Any) -> WatchRequest:
    """The request for a watch."""
    return WatchRequest(create_request=WatchCreateRequest(**fields))


def cancel(id: int) -> WatchRequest:
    """The request to end one."""
    return WatchRequest(cancel_request={"watch_id": id})


watch_requests = st.one_of(
    st.builds(
        create,
        key=mostly(keys, b"", 12),
        range_end=ends,
        start_revision=st.one_of(st.just(0), st.just(0), st.integers(-2, 14).map(lambda n: RELATIVE + n), st.just(-1)),
        prev_kv=flags,
        progress_notify=flags,
        fragment=flags,
        watch_id=st.sampled_from([0, 0, 0, 3, 1, -1]),
        filters=st.sampled_from([[], [], [0], [1], [0, 1]]),
    ),
    st.integers(-1, 3).map(cancel),
    st.just(PROGRESS),
)
