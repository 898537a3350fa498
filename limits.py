"""All limits and timings of RayKeeper, in one place.

``Timings``, ``Limits`` and ``Compaction`` are what a cluster spec may change; the constants after them are fixed. Each
queue, buffer, window and wait of the product takes its bound from here. A constant's unit is the last word of its name:
``_S`` is seconds, ``_BYTES`` bytes, ``_FRACTION`` a part from 0 to 1, ``_DIVISOR`` the divisor of such a part,
``_FACTOR`` a multiple. A name without a unit counts what it names.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 62)]
Bytes = Annotated[int, msgspec.Meta(ge=1024, le=1 << 62)]
Seconds = Annotated[float, msgspec.Meta(ge=0.001, le=1e9)]
Fraction = Annotated[float, msgspec.Meta(ge=0, lt=1)]


class Timings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Timings of the members. Raft needs: message delay << election timeout << time between failures (paper, 5.6)."""

    heartbeat_interval: Seconds = 0.1
    """How often a leader sends heartbeats; also the length of one Raft tick."""
    election_timeout: Seconds = 1.0
    """A follower that has heard nothing for one to two times this long campaigns."""
    session_ttl: Seconds = 60.0
    """A client process that has been silent for this long loses its session."""
    request_ttl: Seconds = 3600.0
    """How long the answer to a request with a ``request_id`` is remembered, at least."""
    replace_after: Seconds = 60.0
    """How long a member must be missed before the supervisor may replace it."""
    check_interval: Seconds = 1800.0
    """How often the members compare their contents in the background."""


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds that a cluster spec may change."""

    max_key_bytes: Count = 16 * 1024
    """Largest key."""
    max_request_bytes: Bytes = 1536 * 1024
    """Largest single request (put, transaction, ...): its keys and values together; etcd's default."""
    max_txn_operations: Count = 128
    """Operations in one transaction: in the longest of its lists of comparisons, of operations if they hold, and of
    operations if not; a nested transaction may have what its outer one leaves. etcd's rule and default."""
    max_page_items: Count = 1000
    """Keys in one page of a range read; longer ranges are fetched in several pages."""
    max_page_bytes: Bytes = 4 * 1024 * 1024
    """Bytes in one page of a range read, in one answer, and in the values that one transaction leaves as they are. At
    least one item always fits."""
    max_deleted_keys: Count = 100_000
    """Keys that one request may delete: those of all deletes of a transaction and of the leases that it revokes. They
    go in one revision, in many turns of a member's loop and one write to its database."""

    max_batch_requests: Count = 1000
    """Requests of one process that travel in one call."""
    max_batch_bytes: Bytes = 2 * 1024 * 1024
    """Keys and values in one call; a single request always fits."""
    max_pending_requests: Count = 50_000
    """Requests of one process that wait for an answer; more are refused with ``Unavailable``."""
    max_calls_in_flight: Count = 4
    """Batches of one process on their way to one member."""

    max_inbox_batches: Count = 4096
    """Client batches that wait in one member; more are refused with ``Unavailable``."""
    max_inbox_bytes: Bytes = 64 * 1024 * 1024
    """The same in bytes: client batches that wait in one member."""
    max_uncommitted_bytes: Bytes = 64 * 1024 * 1024
    """Bytes proposed and not yet committed at a leader; more proposals are refused with ``Unavailable``."""
    max_append_bytes: Bytes = 1024 * 1024
    """Entries in one AppendEntries (at least one always fits)."""
    max_append_messages_in_flight: Count = 64
    """AppendEntries on their way to one follower."""
    max_append_bytes_in_flight: Bytes = 16 * 1024 * 1024
    """The same in bytes: entries on their way to one follower."""
    max_apply_bytes: Bytes = 128 * 1024
    """Entries that one turn of a member's loop applies in one batch (at least one always fits)."""

    max_sessions: Count = 20_000
    """Client processes with a session; another one gets no session, so its writes end in ``Unavailable``."""
    max_session_answers: Count = 20_000
    """Answers remembered for one session until the client confirms them."""
    max_session_answer_bytes: Bytes = 32 * 1024 * 1024
    """The same in bytes: answers remembered for one session."""
    max_remembered_requests: Count = 200_000
    """``request_id`` answers remembered; when full, requests with a new id are refused with ``Unavailable``."""
    max_remembered_request_bytes: Bytes = 256 * 1024 * 1024
    """The same in bytes: answers remembered for all request ids."""
    max_scanned_keys: Count = 1_000_000
    """Keys that one transaction may examine, in all its comparisons and ranges together, in many turns of a member's
    loop. A kilobyte of values counts as a key where values are compared or sorted by. A range at a past revision counts
    every change since. The same number again is allowed for keys deleted in the same frame, which the transaction has
    to skip."""
    max_leases: Count = 100_000
    """Leases at one time; another one is refused with ``Unavailable``."""
    max_lease_keys: Count = 100_000
    """Keys attached to one lease; all of them are deleted in one revision when it ends."""

    log_cut_entries: Count = 20_000
    """The Raft log is trimmed when it holds this many applied entries beyond ``log_keep_entries``..."""
    log_cut_bytes: Bytes = 64 * 1024 * 1024
    """... or this many bytes."""
    log_keep_entries: Count = 5_000
    """Applied entries that trimming leaves in the log, so that a slightly lagging member needs no snapshot."""
    log_hold_bytes: Bytes = 512 * 1024 * 1024
    """While a snapshot is being sent, the log after it is kept up to this size; beyond it, another snapshot is needed.
    A member that waits for a snapshot accepts no more entries than this either."""
    snapshot_chunk_bytes: Bytes = 1024 * 1024
    """One part of a snapshot on its way."""
    snapshot_bytes_per_second: Bytes = 64 * 1024 * 1024
    """The most that one member sends of snapshots, so that its other work does not suffer."""
    log_cache_bytes: Bytes = 8 * 1024 * 1024
    """Newest entries of the log kept in memory."""
    compaction_slice_keys: Count = 100
    """Changes looked at in one slice of physical compaction, so that it stays short; more while more are written."""

    quota_bytes: Bytes = 8 * 1024**3
    """When the files of a member's state take this much of its disk, the cluster refuses puts until they take clearly
    less again; the largest value that etcd recommends."""
    reserve_bytes: Bytes = 256 * 1024**2
    """The same when only this much is free on a member's disk: the Raft log, and all else that grows without a quota,
    must fit into what is left."""


class Compaction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much history a leader keeps when it compacts by itself (etcd: auto-compaction-mode and -retention)."""

    mode: Literal["age", "revisions", "off"] = "age"
    """What ``keep`` counts: seconds, or revisions. With ``off``, only the call ``compact`` removes history."""
    keep: Count = 3600
    """Newer changes stay readable and watchable; older ones are removed some time later."""


class ProxyTls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """TLS on the ports of proxies, with etcd's names and meaning. The files, in PEM, lie at these paths on every node
    with a proxy."""

    cert_file: str = ""
    """The proxy's certificate; empty: no TLS."""
    key_file: str = ""
    trusted_ca_file: str = ""
    """The authority whose certificates clients may show; their common names say which user they are."""
    client_cert_auth: bool = False
    """Whether they must."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the members of a cluster agree on at run time: kept in the replicated state, changed by ``Configure``."""

    timings: Timings = Timings()
    limits: Limits = Limits()
    compaction: Compaction = Compaction()
    lanes: bool = True
    """Whether members offer lanes; without, everything goes by actor calls. Members read it when they start."""
    lane_ports: str = ""
    """TCP ports that members may listen on for lanes from other nodes, as ``FIRST-LAST`` or one number; empty: any."""
    lane_interface: str = ""
    """Network interface whose address members listen on for lanes (``eth1``); empty: the one of the node's address."""
    lease_reads: bool = False
    """Whether a leader answers reads without asking the others while its lease runs. Decided when the cluster is
    created: were it switched on later, members that did not know yet could still help to depose a leader that relies
    on them."""
    clock_drift: Fraction = 0.1
    """How much faster, as a fraction, any member's clock may run than another's; lease reads rely on it
    (``raft/leader_lease.py``)."""
    proxy: str = "off"
    """Where the supervisor runs proxies, which speak etcd's API: ``all``: on every Ray node; ``one``: on one of them;
    ``off``: nowhere."""
    proxy_listen: str = "127.0.0.1:2379"
    """Where such a proxy listens: ``HOST:PORT``, ``HOST:FIRST-LAST`` for the first free port of a range, or port 0 for
    any free one."""
    proxy_advertise: str = ""
    """What its clients are told, ``HOST`` or ``HOST:PORT``. Empty: the address that it listens on, or, if that is all
    addresses of the machine, the Ray node's."""
    proxy_cors: tuple[str, ...] = ()
    """Origins, such as ``https://host``, whose web pages may ask such a proxy by HTTP; ``*`` for all."""
    proxy_console: str = "off"
    """Whether such a proxy serves the console, a web page: ``read``: to look; ``act``: also to act; ``off``: not."""
    proxy_tls: ProxyTls = ProxyTls()


def encode_settings(settings: Settings) -> bytes:
    """Settings as the replicated state holds them."""
    return msgspec.json.encode(settings)


def decode_settings(data: bytes) -> Settings:
    """The inverse. Raises ``msgspec.MsgspecError`` for anything else."""
    return msgspec.json.decode(data, type=Settings)


# A turn of a member's loop: Raft messages first, then client batches, never longer than this.
TURN_EVENTS = 256
TURN_BYTES = 4 * 1024 * 1024
TURN_S = 0.01
MAX_CLOCK_STEP_S = 60.0
"""A member reads its clock with every tick. If the clock went further than this meanwhile, or back, it has jumped, or
the machine has slept."""
MAX_PROMISE_S = 3600.0
"""With lease reads: the longest that a member supports a leader after hearing from it once. A leader asks for the
election timeout, or for this if that is less."""
DEFERRED_SEND_PAUSE_S = 0.005
"""Seconds after which a leader sends entries, and heartbeats that confirm reads, to the followers that the quorum does
not need; if a follower that it needs stays silent, others are asked after this time."""
COMMIT_NOTICE_PAUSE_S = 0.02
"""Seconds that a new commit index waits for entries or a heartbeat that carry it, if nothing at the follower waits
for it."""
MAX_PEER_FRAMES = 4096
"""Frames from peers that wait in a member's inbox; more are dropped, as a network drops messages."""

# Python's interpreter, in a member.
GIL_SWITCH_S = 0.0005
"""How long a computing thread of a member keeps the interpreter while others want it (Python's default: 5 ms). The loop
releases it with every sync and every wait, and must not wait ten times as long for it as for the disk."""

# Threads of a member actor, by concurrency group. Waiters of one group never occupy another.
CLIENT_THREADS = 128
PEER_THREADS = 32
CONTROL_THREADS = 16
WATCH_THREADS = 128
"""One for each client process that watches through this member; further polls wait for a thread."""

# Membership.
MAX_MEMBERS = 9
"""Members that a spec may ask for: each more makes every write wait for more disks; seven survive three failures."""
PROMOTE_LAG_ENTRIES = 100
"""Entries of the leader's log that a learner may still lack when it becomes a voter."""
FRESH_FRACTION = 0.25
"""Fraction of two election timeouts: a member heard from within this time surely counts for the quorum after a
change."""
MAX_MEMBER_ID = 1 << 32
MAX_CHANGES = 2 * MAX_MEMBERS
"""Steps of one change of membership."""

# A request.
DEFAULT_TIMEOUT_S = 10.0
"""Timeout of a client call that names none."""
MAX_NESTED_TXNS = 128
"""How deep transactions nest, whatever ``max_txn_operations``: code that follows them is recursive."""
TXN_TOTAL_FACTOR = 4
"""All operations and comparisons of a transaction, nested ones included, are at most this many times
``max_txn_operations``; without nesting they cannot be more than three times as many."""
MAX_REQUEST_ID_BYTES = 256
REQUEST_DIGEST_BYTES = 16
"""Of the digests of a namespace and of an operation that are kept with a ``request_id``."""
MAX_NAME_BYTES = 4096
"""Of any name in a frame: a nonce, a stream, a place, an alarm's text."""
MAX_SETTINGS_BYTES = 64 * 1024
MAX_FRAME_DEADLINE_S = 3600.0
"""The longest that a member holds a frame, even if its sender would wait longer."""

# Users and roles.
MAX_USERS = 10_000
MAX_ROLES = 10_000
MAX_USER_NAME_BYTES = 256
"""Of a user's name, or a role's."""
MAX_ROLES_OF_USER = 256
MAX_PERMISSIONS_OF_ROLE = 1000
MAX_PASSWORD_BYTES = 72
"""bcrypt looks at no more."""
MAX_PASSWORD_HASH_BYTES = 128
PASSWORD_HASH_ROUNDS = 10
"""The cost of bcrypt, as in etcd: each more doubles it."""
AUTH_KEY_BYTES = 32
"""Of the key that tokens are signed with."""
TOKEN_TTL_S = 300.0
"""A token ends after this time, by the cluster's clock, which may lag by ``CLOCK_STEP_S``; one that has not ended can
be exchanged for a new one..."""
TOKEN_RENEW_FRACTION = 0.5
"""... as clients do once this part of its time is over."""
MAX_TOKEN_BYTES = 1024
MAX_IDENTITY_LETTERS = 128
"""Of each text that a client says of itself (``schema/client_identity.py``), and of the task that a lease is for."""
UP_SETTLE_S = 10.0
"""For which `raykeeper up` waits for the members that are still starting when a leader serves."""
MAX_EVENTS = 1000
"""Events of the cluster that are kept (``store/state/event_log.py``)..."""
MAX_EVENT_LETTERS = 500
"""... and letters of each."""
EVENTS_PER_COMMAND = 50
"""Events that are recorded together."""
EVENTS_PAUSE_S = 1.0
"""Between two times that a leader records events: so a member that comes and goes does not fill the log."""
CLIENTS_PER_ANSWER = 500
"""Clients in one answer to who they are; more are asked for in parts."""
TOKENS_KNOWN = 4096
"""Tokens that a member or a proxy remembers to have checked."""
MAX_PROXY_USERS = 64
"""Users for whom a proxy keeps a hub, with its session and lanes; more displace the one that has been idle longest."""
PASSWORD_CHECKS_AT_ONCE = 2
"""In one member: each takes about a twentieth of a second of a processor. Further ones are refused, and sent again."""

# The work of applying a command, counted in examined keys: each costs about a microsecond.
WORK_OF_WRITE = 8
"""Of one write..."""
WORK_OF_DELETE = 4
"""... of one deleted key, besides examining it..."""
WORK_OF_COPY = 4
"""... and of each kilobyte of values that is written."""
WORK_OF_CHECKS_SHIFT = 4
"""Checking that a transaction's operations are compatible costs the square of their number, shifted right by this."""
DELETE_SLICE_KEYS = 1000
"""Deleted keys of one operation after which a turn of a member's loop stops; the next turn goes on with them."""
SCAN_SLICE = 5_000
"""Of what ``max_scanned_keys`` counts, the part after which a turn stops in the same way."""
TXN_PAST_CHANGES = 10_000
"""Changes since the revision that a range inside a transaction reads; one of an older past is read outside of it."""
BATCH_SLICE_WRITES = 10_000
"""The same for the records of one write to the database, as they are prepared, and for the past of a large write, which
is written ahead of it..."""
BATCH_SLICE_BYTES = 1024 * 1024
"""... and for the bytes of the latter."""
MAX_FORGOTTEN_ANSWERS = 10_000
"""Answers of sessions, and request ids, that one command forgets, if it may not delete as many keys."""
APPLY_WORK = 10_000
"""Work after which a turn of a member's loop stops in the middle of a command with many writes; the next turn goes on
with it. After half of it, a turn starts no further entry."""
ENTRY_CHANGES = 5_000
"""Keys that one log entry changes, and kilobytes that it writes or answers, after which its remaining writes are not
done: all of them are written at once. The client sends the rest again."""
HISTORY_WINDOW = 250
"""Changes that reading the history for a watch looks up together."""
SMALL_RANGES = 1024
"""Ranges whose keys a member knows without asking its database, since transactions have looked at all of them..."""
SMALL_RANGE_KEYS = 8
"""... and how many keys each of them has at most."""
KNOWN_LEASE_KEYS = 4
"""Attached keys of a lease that a member knows without asking its database."""
KNOWN_KEY_BYTES = 128
"""Keys, of ranges and leases, that are longer are not known in this way."""
PAST_CHANGES = 5_000
"""A read of a past revision goes through up to this many changes since; beyond, through all keys of its range that ever
changed."""

# A member's databases.
INLINE_VALUE_BYTES = 1024
"""Longer values are stored beside the key's latest record, not in it, so that counting and listing keys stays cheap."""
LOG_SEGMENT_BYTES = 4 * 1024 * 1024
"""Size of a segment of the Raft log."""
LOG_BLANK_SLICE_BYTES = 256 * 1024
"""Bytes that are written and synced at a time to make the next segment blank..."""
LOG_BLANK_PAUSE_S = 0.01
"""... and the pause before the next ones: each sync of the log may have to wait for those."""
LOG_FREE_SEGMENTS = 4
"""Trimmed segments of the Raft log that are kept to be recycled."""
STATE_WRITE_BUFFER_BYTES = 16 * 1024 * 1024
DELETES_IN_MEMORY = 1024
"""Deletes in one column family after which its memtable is flushed to a file, which keeps scans over them short: queues
scan where they have just deleted. A delete in bulk costs 7 us more by that."""
BLOCK_CACHE_BYTES = 32 * 1024 * 1024
COPY_BYTES = 1024 * 1024
"""Bytes that packing, hashing and unpacking a snapshot hold in memory at a time."""

# Work of a member besides serving: rounds of its loop, expiries, compaction, snapshots.
MAX_READY_ROUNDS = 8
"""Rounds of writing, sending and applying in one turn before it looks at its inbox again."""
MAX_EXPIRIES_AT_ONCE = 500
"""Sessions that one log entry ends."""
MAX_READ_ROUNDS = 64
"""ReadIndex rounds of one member without an answer; reads that arrive meanwhile share the next one."""
COMPACTION_PAUSE_S = 0.003
"""Between two slices of physical compaction."""
COMPACTION_MAX_FACTOR = 20
"""The most times its usual length that a slice grows to."""
COMPACTION_CHECK_S = 1.0
"""How often a leader checks whether there is history to remove."""
COMPACTION_SLACK_DIVISOR = 20
"""History is compacted when it exceeds what is kept by this part of it, not after each change."""
SNAPSHOT_IDLE_S = 60.0
"""A snapshot image is removed when no chunk of it was fetched or received for this long."""
SNAPSHOT_RETRY_S = 5.0
"""Pause before a snapshot is tried again that failed for a local reason, such as a full disk."""
SNAPSHOT_INLINE_BYTES = 8 * 1024
"""A chunk of up to this size is read in the loop; a larger one is fetched beforehand, in the background."""
SNAPSHOT_SYNC_BYTES = 8 * 1024 * 1024
"""Bytes of a snapshot that are written before they are synced. With more at once, every other sync on that disk, on
which all writes of the cluster wait, would queue after them for seconds."""
SNAPSHOT_FETCHED_CHUNKS = 8
"""Chunks in memory that wait to be sent."""

# Reads, in a member.
READ_SCAN_KEYS = 20_000
"""Keys that one read of a range examines before it answers with what it has. A client without an answer for
``CLIENT_SUSPICION_S`` would ask another member, which would start from the beginning."""
READ_FRAME_S = 0.1
"""Once the reads of one frame have taken this long, no further one of it is started."""

# Watches and leases, in a member.
MAX_WATCH_STREAMS = 4096
MAX_WATCHES_PER_STREAM = 20_000
WATCH_REPLY_BYTES = 2 * 1024 * 1024
"""Events in one answer to a poll (at least one revision of one watch always fits)..."""
WATCH_BATCH_BYTES = 512 * 1024
"""... and of one watch in it, so that a lagging one leaves room for the others."""
WATCH_SCAN_CHANGES = 5000
"""Changes of any keys that one watch scans at a time."""
WATCH_STREAM_IDLE_S = 30.0
"""A stream that is not polled for this long is dropped..."""
WATCH_FORGET_AT_ONCE = 500
"""... this many of its watches with every heartbeat."""
WATCH_POLL_S = 5.0
"""The longest that a poll waits for news; also how often a quiet watch gets a progress notice."""
WATCH_QUICK_CHANGES = 16
"""The loop itself notifies watches of up to this many keys applied together, and up to this many of one stream."""
WATCH_QUICK_STREAMS = 8
"""Streams that the loop itself notifies of one change; other threads notify the rest."""
WATCH_FIRST_STREAMS = 1
"""Streams that are notified of a change before the client that made it is answered. Each takes the loop some 0.1 ms."""
MAX_LEASES_AT_ONCE = 1000
"""Leases that one log entry ends, renews or checkpoints."""
MAX_LEASES_IN_FRAME = 10_000
"""Leases that one keep-alive or one question names: the loop looks up each."""
LEASE_CHECKPOINT_FRACTION = 0.5
"""A lease that was kept alive has its end written into the log once less than this fraction of its TTL is left."""

# The cluster's clock.
CLOCK_FRESH_S = 1.0
"""How long the end of a lease may be counted from a reading that the leader has put into the log."""
CLOCK_STEP_S = 30.0
"""From one reading of the clock in the log to the next while there is something that ages..."""
CLOCK_FIRST_STEP_S = 1.0
"""... and to the second one of a leader, which may not live that long; the steps double from there..."""
CLOCK_STEP_FRACTION = 1 / 16
"""... and this fraction of the shortest time that anything is kept, if that is less."""
CLOCK_RESOLUTION_DIVISOR = 8
"""Two readings need not be closer together than this part of their age; those between them are forgotten."""
MAX_BEGINNINGS = 256
"""Changes of the leader that the clock remembers."""
MAX_CLOCK_GAP_S = 1e9
"""The most that may pass from one reading to the next."""

# Members that join or have left.
MAX_RESERVED_MEMBERS = 16
"""Members that have an id and are not in the configuration yet; more are refused."""
MAX_LEFTOVERS = 20
"""Newest removed members whose actors and data the supervisor still looks for."""
MAX_REMOVED_MEMBERS = 1000
"""Removed members that a cluster remembers, to tell them from members it never had."""

# Waiting and retrying, in a client process.
THREADS_WOKEN_AT_ONCE = 4
"""Of those for which a reply brings outcomes; each wakes another one."""
CLIENT_SUSPICION_S = 0.5
"""A batch without an answer for this long is sent to another member too (later if answers were slow recently)..."""
CLIENT_MAX_SUSPICION_S = 5.0
"""... but never later than this."""
CLIENT_TERM_WAIT_S = 0.1
"""A lone linearizable read waits this long for the term of the voter that it has asked beside the leader; then it is
sent once more, as an ordinary one."""
CLIENT_ANSWERED_OTHERWISE = 3
"""A leader that has answered so many of these reads in a row as ordinary ones has no use for a voter."""
CLIENT_TERM_PAUSE_S = 1.0
"""After a read that was sent once more, or that shows that the leader has no use for a voter or does not know this way,
reads go the ordinary way for this long, doubling each time in a row..."""
CLIENT_MAX_TERM_PAUSE_S = 30.0
"""... up to this."""
CLIENT_TERM_LOST_S = 300.0
"""A voter that has not answered such a question is not asked another one until it has, or for this long."""
CLIENT_SLOW_VOTER_S = 0.002
"""A voter whose word comes later than the leader's answer by this, and by as long as the leader took, is not asked the
next time, if there is another."""
CLIENT_MAX_QUARANTINE_S = 4.0
"""A member that did not answer is not asked again for one second, doubling up to this, while others can be asked."""
CLIENT_BACKOFF_S = 0.02
"""Pauses between attempts that fail are drawn from 0 to a bound: this, doubling with each failure in a row up to..."""
CLIENT_SHORT_BACKOFF_S = 0.3
"""... this; and on from there up to..."""
CLIENT_BACKOFF_FRACTION = 0.25
"""... this fraction of the time for which nothing has succeeded, so that a long outage is not made much longer..."""
CLIENT_MAX_BACKOFF_S = 5.0
"""... and never beyond this."""
CLIENT_PROBE_REQUESTS = 16
"""Requests in one batch while it is unknown which member answers, so that one that cannot is not flooded."""
CLIENT_BATCH_DIVISOR = 8
"""While batches are in flight, another one goes once the waiting requests are this part of those in flight."""
LOOP_SUBMIT_REQUESTS = 64
"""Requests of one iteration of an event loop that are submitted before it is over: so many..."""
LOOP_SUBMIT_DIVISOR = 8
"""... and this part of the loop's open requests."""
CLIENT_MAX_REDIRECTS = 4
"""Leader hints in a row that are followed without a pause."""
CLIENT_MAX_LATE_BATCHES = 32
"""Batches given up as lost, of each kind, whose late answers would still be accepted."""
CLIENT_MAX_FRAME_DEADLINE_S = 60.0
"""The longest deadline that a batch names, whatever its requests' timeouts."""
CLIENT_REFRESH_INTERVAL_S = 1.0
"""While no member answers, the member list is looked up again after a pause drawn from 0 to this, doubling up to..."""
CLIENT_MAX_REFRESH_INTERVAL_S = 8.0
"""... this. One lookup serves all hubs of a process that ask within..."""
CLIENT_LOOKUP_TIMEOUT_S = 10.0
"""Seconds for one look at the members in Ray; then the next one may begin."""
CLIENT_REFRESH_AGE_S = 0.5
"""... this time."""
CLIENT_RANGE_RESTARTS = 5
"""Times that a range is read from the start again because it was compacted between two of its pages."""
ASYNC_CHECK_S = 1.0
"""While coroutines wait for calls: how often to check whether an interrupt left anything undone for them."""
ASYNC_WATCH_CHECK_S = 30.0
"""The same for a coroutine that waits for events."""
HUB_LINGER_S = 15.0
"""How long a process keeps its hub after the last handle is gone, for the next one: Ray's workers run one task after
another."""
MAX_IDLE_HUBS = 4
"""Hubs (each of another cluster) that a process keeps in this way."""

# Calls to Ray, in a process that has a deadline.
MAX_RAY_HELPERS = 64
"""Threads that wait for Ray's control service on behalf of others; further calls wait for one of them."""
CLEANUP_GRACE_S = 0.5
"""How long a call past its deadline still waits for its own cleanup, which then goes on without it."""
RAY_LEAVING_S = 1.0
"""Seconds that a call waits while the process attaches to Ray or leaves it on another thread."""
MAX_RAY_CALLS_WAITING = 4096
"""Frames that wait to be handed to Ray as actor calls; more are refused, and sent again later."""

# Watches and leases, in a client process.
WATCH_BUFFER_EVENTS = 10_000
WATCH_BUFFER_BYTES = 4 * 1024 * 1024
"""Events that a process holds for one watch whose consumer is slow (and as much again in the consumer itself). Beyond
that the watch pauses; once they are taken it continues from the store's history."""
WATCH_CREATES_AT_ONCE = 1000
WATCH_CREATE_BYTES = 1024 * 1024
"""Watches, and bytes of their keys, that one poll creates."""
WATCH_CREATE_WAIT_S = 1.0
"""The longest that a member may take to confirm that its newest revision is the cluster's, for a watch from now on."""
WATCH_POLL_GRACE_S = 1.0
"""A poll counts as lost this long after its end; sooner if it should have been answered at once."""
WATCH_LAG_S = 2.0
"""A member is left if it has not reached a revision this long after the process learned of it."""
WATCH_LINGER_S = 10.0
"""A stream is polled for this long after its last watch has ended, in case another one comes."""
LEASE_MIN_TTL_S = 1.0
"""Keep-alives are sent every third of the TTL, and heartbeats between members must be frequent compared with that."""
LEASE_MAX_TTL_S = 9e9
"""etcd's bound."""
LEASE_ID_BITS = 62
"""Of the random lease id that a client chooses itself."""
LEASE_MARGIN_FRACTION = 0.02
"""Fraction of the TTL by which a client counts a lease as lost before the cluster may end it: two machines' clocks do
not run at exactly the same rate..."""
LEASE_MIN_MARGIN_S = 0.05
"""... and the waiter for the loss needs a moment to hear of it."""
LEASE_LATE_FRAMES = 8
"""Keep-alives given up as lost whose late answers would still be accepted."""
LEASE_RETRY_S = 0.05
"""Pause before a lease is asked for again that the leader could not answer for."""

# Garbage and background work, in a client process.
GC_CHECK_PAUSE_S = 1.0
"""Between two checks whether a process that keeps leases alive must collect garbage to find dropped ones, because it is
idle or allocates nothing..."""
GC_IDLE_FRACTION = 0.2
"""... idle means that it used less than this fraction of a core meanwhile..."""
GC_CPU_FRACTION = 0.005
"""... and the fraction of a core that a full collection may cost."""
MAX_BACKGROUND_TASKS = 1000
"""Tasks that wait for the thread of a process that collects garbage and writes logs; more are left out."""

# Local copies of a prefix (``client.cached``).
CACHED_MAX_BYTES = 1024 * 1024 * 1024
"""What a copy may hold unless it is told otherwise."""
CACHED_ENTRY_BYTES = 400
"""What a key counts besides its own bytes and its value's."""
CACHED_FIRST_CHECK_S = 0.005
"""How long a caller waits for a revision before the member is asked how far it is: mostly the revision just arrives."""
CACHED_MAX_CHECK_S = 0.25
"""The longest between two such questions: the revision does not exist yet."""

# Coordination calls.
RECIPE_PAUSE_S = 0.05
"""The shortest time between two checks whether a contender's key still exists."""
RECIPE_MAX_PAUSE_S = 0.2
"""The longest pause before a change is tried again that another client was faster with."""
RATE_RETRY_PAUSE_S = 0.01
"""The longest pause of a rate's holder before it looks again, for each other holder, and doubled whenever another was
faster..."""
RATE_MAX_RETRY_PAUSE_S = 0.5
"""... but no longer than this."""
MAX_RATE_HOLDERS = 256
"""Processes that share one rate."""
MAX_RATE_PER_SECOND = 1_000_000_000
"""The highest rate, and the largest burst."""
MAX_SECONDS_PER_TOKEN = 1_000_000
"""Of the lowest rate."""
RATE_IDLE_S = 10.0
"""A process that has asked for no token for so long gives its share of a rate back."""
RATE_LOOK_S = 1.0
"""How often it looks whether that is so."""
RATE_PAUSE_S = 0.001
"""The shortest time between two looks whether tokens have come..."""
RATE_MAX_PAUSE_S = 0.1
"""... and the longest."""
MAX_LIVES = 256
"""Actors, jobs and drivers to which leases of one process are bound."""
LIFE_CHECK_S = 0.1
"""Between two looks at whether their processes have ended..."""
LIFE_LOOK_S = 0.5
"""... and between two questions to Ray whether they are dead for good..."""
LIFE_ANSWER_S = 2.0
"""... which it has to answer within this time."""
MAX_LOSS_WATCHES = 256
"""Losses for which an actor is to be ended, in one process: each has a thread."""
MAX_CALLBACKS = 256
"""Functions that are called on changes or for the connection, in one process: each has a thread or a task."""
CONNECTION_CHECK_S = 1.0
"""Between two looks at the connection, for those who want to be told of it..."""
CONNECTION_PROBE_S = 2.0
"""... and how long each waits for an answer."""
ATOMICALLY_PREFETCH_BYTES = 64 * 1024
"""The most that a function's transaction reads again for its next run, in the same request, if it may not write."""
COUNTER_BITS = 8192
"""Of a counter's value: Python converts numbers of up to 4,300 digits to and from text."""
RECIPE_SPARE_LEASES = 4
"""Leases of finished claims that a queue keeps for its next ones."""
RECIPE_SCAN_ITEMS = 32
"""Items of a queue that are read together to find a free one."""
IN_USE_NAMES = 1000
"""Names of locks and the like that one look at what is in use tells, unless more are asked for..."""
IN_USE_PARTICIPANTS = 200
"""... and how many holders, and how many waiters, of each."""
STUCK_FRACTION = 0.6
"""Of a lease's TTL: a holder that has been silent for longer is thought to be stuck. Clients are heard every third."""
MAX_PARTITIONS = 4096
RECIPE_MOVES_PER_TXN = 32
"""Partitions that one transaction gives back or takes."""
RECIPE_CHECK_S = 2.0
"""Background work notices within this time that the object it works for is gone."""

# Between members: calls from one member to one other.
MAX_PEER_CALLS = 4
"""Calls in flight; what arises meanwhile is collected, and travels together in the next ones."""
MAX_GIVEN_UP_CALLS = 16
"""Calls that have had no answer for so long that they no longer count as in flight; with more, messages are dropped."""
MAX_PEER_PENDING_MESSAGES = 1024
MAX_PEER_PENDING_BYTES = 32 * 1024 * 1024
"""Messages that wait to be sent; beyond that the oldest are dropped."""
PEER_LOOKUP_PAUSE_S = 0.2
"""Between two attempts to find the actor of a peer."""
MIN_PEER_CALL_TIMEOUT_S = 1.0
"""A call is given up after an election timeout, but not sooner than this."""

# Lanes: stream sockets between clients and members, and from each member to each other one.
MAX_LANES = 4096
"""Lanes of one member; further clients go by actor calls."""
MAX_OPEN_FILES = 256
"""Of one database; a quarter of the process's limit where that is less."""
MEMBER_DESCRIPTORS = 65_536
"""What a member raises its soft limit of file descriptors to, where the hard limit allows."""
RESERVED_DESCRIPTORS = 640
"""Of these, kept free of clients' lanes: two databases (``MAX_OPEN_FILES`` each), connections without a token, peers,
Ray..."""
PEER_DESCRIPTORS = 32
"""... of which this many may be lanes of peers."""
MAX_LANE_FRAME_BYTES = 64 * 1024 * 1024
"""One frame; longer ones go by actor calls."""
MAX_LANE_REQUESTS = 256
"""Requests of one client that wait for an answer; at this many its lane is not read, and it asks by actor calls."""
MAX_LANES_REQUESTS = 8192
"""The same of all clients of a member together; more are refused with ``Unavailable``."""
MAX_LONE_READS = 64
"""Requests of one look at the lanes among which lone reads are answered at once; the others wait for a turn, as
heartbeats must not wait for them."""
LANE_SHARE_BYTES = 64 * 1024
"""Requests that one client has under way in a member while other clients ask it too, or one request if that is longer;
what follows stays in its socket..."""
LANE_SHARE_S = 0.1
"""... for this long after two requests in a row came from different clients..."""
LANE_ALONE_BYTES = 64 * 1024 * 1024
"""... and of a client that is alone."""
LANE_UNSENT_BYTES = 16 * 1024 * 1024
"""Requests that wait in a client for room in its lane; with this many it asks by actor calls."""
LANE_READ_BYTES = 64 * 1024
"""Read from one lane at a time, so that each has its turn. From 128 KiB on, malloc maps and unmaps each buffer: three
system calls and a page fault more for every read, however little arrives."""
LANE_BACKLOG_BYTES = 4 * 1024 * 1024
"""Unread answers of a client: with this many bytes of them its lane is not read either..."""
MAX_LANE_BACKLOG_BYTES = 64 * 1024 * 1024
"""... and with this many it is closed."""
PEER_BACKLOG_BYTES = 4 * 1024 * 1024
"""With this many unsent bytes on the lane to a peer, messages go by actor calls, which drop the excess."""
MAX_LANES_BYTES = 512 * 1024 * 1024
"""Bytes that all lanes of a member hold, half-read or unsent; a lane that holds some and wants more is closed."""
MAX_LANE_TOKENS = 4096
"""Tokens that were handed out and not used; beyond that the oldest is void."""
LANE_TOKEN_TTL_S = 10.0
MAX_SESSIONS_MONITORED = 64
"""Sessions with which a process can die, for each of its lanes: it has one at a time."""
MONITOR_LINGER_S = 10.0
"""Seconds after the end of its lane for which the death of a process is still noticed. The lane of a process that dies
ends first."""
MONITOR_REFRESH_S = 2.0
"""How often a process says that it wants to be monitored: a member that was started again does not know."""
MONITOR_PAUSE_S = 0.02
"""Pause after the first attempt without success; it doubles up to the above."""
MAX_WATCHED_PROCESSES = 4096
"""Processes of its node that a proxy watches, where no member runs..."""
MAX_WATCH_CLAIMS = 256
"""... and of these, how many wait for the cluster to say whose their session is."""
PROXY_MONITOR_S = 5.0
"""Seconds for which a process waits for the proxy of its node to watch it."""
PROXY_LOOK_MAX_S = 60.0
"""Between two looks for a proxy where there was none, at most."""
DEATH_REPORT_S = 30.0
"""Seconds for which a member tries to report the death of a process; then the TTLs of leases must do."""
DEATH_REPORT_CALL_S = 2.0
"""Seconds for which one attempt waits."""
DEATH_REPORT_PAUSE_S = 0.02
"""Pause between two attempts, which doubles up to the above."""
MAX_UNAUTHENTICATED_LANES = 128
"""Connections that have not shown a token yet; beyond that the oldest is closed..."""
MAX_UNAUTHENTICATED_LANES_OF_ONE = 64
"""... or, from this many of one address, or of one user but the member's own, the oldest of these."""
LANE_ACCEPTS_PER_S = 250
"""Connections that a member accepts from one listener, whichever process makes them..."""
LANE_ACCEPTS_AT_ONCE = 250
"""... and as many at once after a rest; further ones wait in the kernel, or are refused there."""
LANE_HELLO_TIMEOUT_S = 5.0
"""Within this they must have shown it."""
LANE_OPEN_TIMEOUT_S = 3.0
"""Within this of its offer a lane must be open; until then, and if it cannot be, everything goes by actor calls."""
LANE_ANSWER_S = 600.0
"""So long a member waits for a peer's actor to offer a lane; then it asks once more, since an answer may be lost..."""
LANE_ANSWER_TOLD_S = 180.0
"""... and after this, if the peer has a lane to it, so that it runs, it says so in its log and in the status."""
LANE_PAUSE_S = 0.2
"""From one attempt to open a lane to the next; doubles up to ``LANE_MAX_PAUSE_S``."""
LANE_MAX_PAUSE_S = 2.0
LANE_UNREACHABLE_PAUSE_S = 300.0
"""The same where the member has offered a lane and its address cannot be reached: a firewall, most likely."""
LANE_PROVEN_S = 30.0
"""A lane that has lasted for this long does not go through a firewall that lets only the beginning pass."""
LANE_UNREACHABLE_ATTEMPTS = 3
"""After so many such attempts in a row it is said, once, in the log and in the status."""
LANE_REFUSED_PAUSE_S = 30.0
"""The same where the member has no lane to offer: it is starting, is configured without lanes, or is full."""
LANE_LOOK_S = 5.0
"""Between two looks of a member whether it has a lane to each other one; ``LANE_PAUSE_S`` until it has had each."""
LANE_SILENCE_S = 5.0
"""A host that accepts no bytes, or is silent, for this long is gone."""
LANE_LINGER_S = 1.0
"""How long a process that closes its lanes waits for its last bytes to arrive."""
LANE_READERS = 2
"""Threads of a member that make answers which may take a long time."""
LANE_QUICK_READS = 64
"""Reads of single keys that the loop makes itself; what may take longer goes to such a thread."""
CAMPAIGN_STEP_S = 0.15
"""Followers whose leader's lane has ended campaign one after another, this far apart..."""
EARLY_CAMPAIGNS = 3
"""... and each this often, if no election succeeds."""

# Background maintenance, in a member.
MAX_ALARM_CHARACTERS = 500
"""Of an alarm's text."""
DISK_CHECK_PAUSE_S = 0.5
"""Between two checks of a member's disk: what is written meanwhile must fit into ``reserve_bytes``."""
ALARM_RETRY_S = 5.0
"""An alarm that the leader has not accepted within this time is sent again."""
QUOTA_CLEAR_FRACTION = 0.9
"""An alarm for the quota ends below this fraction of it."""
RESERVE_CLEAR_FACTOR = 1.25
"""An alarm for the disk ends when this many times the reserve is free."""
MAX_OPERATOR_REQUESTS = 2
"""Hashes of keys and defragmentations that operators have asked one member for and that have not ended: each waits for
the one before it on a thread of its own."""
MAX_COMPACTION_WAITS = 1000
"""Requests that wait at one member for the end of physical compaction."""
RECLAIM_PAUSE_S = 5.0
"""Between two attempts to reclaim deleted data's space while such an alarm is on..."""
RECLAIM_MIN_FRACTION = 0.05
"""... if at least this fraction of the state's files is such data."""
HASH_SLICE_RECORDS = 500
"""Records that hashing reads before it lets others run..."""
HASH_CPU_FRACTION = 0.25
"""... and the fraction of a core that it takes."""
MAX_THROTTLE_PAUSE_S = 0.05
"""The longest pause after one slice."""
MAX_WAITING_HASHES = 4
"""Requests to hash its content that a member has not started on."""
CHECK_ATTEMPTS = 3
"""Times that a member is asked for its hash: one that has just started cannot have a hash of what was before."""
CHECK_SILENCE_S = 15.0
"""A member that answers nothing for this long is not waited for."""
REMEMBERED_HASHES = 4
"""Hashes of its content that a member reports."""
CHECK_TIMEOUT_S = 600.0
"""Within this all members must have hashed their contents; one that has not is not compared."""
CHECK_REPEAT_S = 60.0
"""The longest from one comparison to the next while a member's content is known to differ: it may be repaired."""
CHECK_RETRY_S = 10.0
"""Until the leader tries a comparison again that it could not start."""

# Backups.
MAX_BACKUP_HEADER_BYTES = 64 * 1024
BACKUP_TIMEOUT_S = 600.0
"""For taking a backup, if the caller names no other time."""
BACKUP_CHUNK_BYTES = 4 * 1024 * 1024
"""Size of the chunks in which a backup travels, from a member and to the members of a new cluster."""
MAX_BACKUP_PART_BYTES = 1024 * 1024
"""The same where it travels in frames, as to a proxy: at most this in one."""
BACKUP_BLOCK_BYTES = 512
"""A backup that a client of etcd saves is a whole number of such blocks, and a digest: by that the client knows that
there is one."""
BACKUP_CHUNKS_AHEAD = 2
"""Chunks that are requested before the last one has arrived."""
BACKUP_IDLE_S = 60.0
"""A member drops a backup of which no chunk was fetched for this long."""
BACKUP_END_TIMEOUT_S = 10.0
"""So long it is waited for that a member drops a backup that was fetched, or is not wanted any more."""
BACKUP_BEGIN_TIMEOUT_S = 120.0
"""Within this a member must have made the image for a backup; otherwise another member is asked."""
BACKUP_CONFIRM_TIMEOUT_S = 10.0
"""... and have applied what the cluster had committed when it was asked; otherwise another member is asked."""
BACKUP_CHUNK_TIMEOUT_S = 60.0
"""Within this a member must have sent one chunk, or all nodes must have stored one..."""
RESTORE_TIMEOUT_S = 3600.0
"""For restoring a cluster, if the caller names no other time..."""
RESTORE_UNPACK_TIMEOUT_S = 1800.0
"""... and for checking and unpacking the whole backup on the nodes."""

# The proxy.
PROXY_TIMEOUT_S = 7.0
"""How long a proxy tries to answer a call whose client would wait longer: etcd's five seconds and two election
timeouts."""
PROXY_LEADERLESS_TIMEOUTS = 3
"""Election timeouts without a leader after which a stream ends whose client wants one (etcd: maxNoLeaderCnt)."""
OPERATOR_TIMEOUT_S = 600.0
"""The same for what reads or writes all data of a member: a hash, defragmentation, the end of compaction."""
PROXY_SNAPSHOT_BYTES = 256 * 1024
"""Of a backup in one message to a client of etcd."""
PROXY_SNAPSHOT_STALL_S = 600.0
"""A client that takes no part of a backup for this long gets no more of it."""
PROXY_PROGRESS_NOTIFY_S = 600.0
"""How often a proxy tells a quiet watch that asks for it how far it has come..."""
PROXY_PROGRESS_JITTER_FRACTION = 0.1
"""... more or less by this fraction. Both are etcd's."""
PROXY_PROGRESS_CHECK_S = 0.02
"""Between two checks whether all watches of a stream have come as far as one that asks for progress waits for."""
MAX_PROXY_WATCH_ANSWERS = 1000
"""Requests in one stream of watches whose answers are not sent yet; with as many, no other request is read."""
PROXY_WATCH_ANSWER_BYTES = 512 * 1024
"""Events of several revisions that a proxy sends in one message; a revision is never split unless its client asks for
fragments, which hold as much as a request may."""
PROXY_REGISTRATION_TTL_S = 10.0
"""A proxy that has died disappears from the list of members after this..."""
PROXY_REGISTRY_CHECK_S = 2.0
"""... and others look this often whether they have to speak for another member..."""
MAX_PROXY_REGISTRATION_TRIES = 64
"""... and try so many times, if others write at the same time, before they wait again."""
PROXY_REGISTRY_TIMEOUT_S = 5.0
"""For one read or write of the directory of proxies."""
PROXY_DEREGISTER_S = 2.0
"""For a proxy that stops to say so; otherwise its entry goes with its lease."""
PROXY_CONNECT_TIMEOUT_S = 10.0
"""For the actor of a proxy to find its cluster..."""
PROXY_RETRY_S = 1.0
"""... and between two attempts of one that cannot serve, say because its port is taken."""
PROXY_HOST_STOP_S = 9.0
"""For the actor of a proxy to deregister, and to let calls end, before it is killed."""
PROXY_KEEPER_PAUSE_S = 1.0
"""Between two checks of a supervisor whether each node has the proxy that it should have."""
PROXY_START_RETRY_S = 10.0
"""Until a proxy is started again on a node where one was started and is not there."""
PROXY_SILENT_S = 60.0
"""A proxy on a node that is alive, which has not answered for this long, is replaced."""
PROXY_START_TIMEOUT_S = 20.0
"""How long a launch waits until each proxy serves, or says why it does not."""
MAX_RELAY_FRAME_BYTES = 256 * 1024 * 1024
"""Of what a shell and the proxy of its node send each other; a frame by actor call may be as long..."""
MAX_RELAY_REQUESTS = 64
"""... and a shell may have so many under way."""
MAX_RELAY_CONNECTIONS = 256
"""Shells that a proxy serves at a time; others go by Ray."""
MAX_RELAY_OFFERS = 32
"""Offers of lanes that a proxy asks for at a time, for all shells; others are told that there is no lane yet."""
RELAY_LOOK_S = 1.0
"""If Ray has not told a proxy the present members within this time, a shell is told those that the proxy knows."""
RELAY_SWEEP_AGE_S = 60.0
"""A proxy that starts deletes the sockets of this age that nobody listens on: a younger one may be another's, which
starts as well."""
RELAY_SEND_TIMEOUT_S = 5.0
"""A proxy that reads nothing for so long is taken for dead by a shell."""
RELAY_RAY_VIEW_S = 10.0
"""Within this a proxy must have told a shell what Ray knows around the members: three times ``STATUS_TIMEOUT_S``."""
RELAY_MOVE_LEADER_S = 5.0
"""Within this a leader must have begun to hand leadership over: more than ``STATUS_TIMEOUT_S``."""
RELAY_TIMEOUT_S = 2.0
"""A shell waits so long for a proxy to tell it the members, and at its start for one of them to serve; then it goes by
Ray, and asks that proxy no more."""
MAX_GATEWAY_REQUEST_BYTES = 4 * 1024 * 1024
"""JSON of one request to a proxy, and what has arrived of one that is not complete."""
GATEWAY_END_S = 1.0
"""So long a call by way of the JSON gateway whose time is over may take to end before it is answered."""

HTTP_PAGE_ITEMS = 1000
"""Keys in one answer of `/kv/`; a page ends earlier if it would exceed `max_page_bytes`."""
HTTP_WATCH_NOTICE_S = 15.0
"""How often a quiet watch of `/kv/` is told how far it has come."""
MAX_HTTP_PARAMETERS = 16
"""In the query of one request to `/kv/`."""

# The console: what one answer to its page holds at most.
CONSOLE_KEYS = 200
"""Keys and folders of one level of the tree; more are asked for page by page."""
CONSOLE_KEY_BYTES = 256 * 1024
"""Their keys together: then a page ends earlier."""
CONSOLE_READS = 50
"""Reads for one such page: each folder costs one, because its keys are passed over."""
CONSOLE_VALUE_BYTES = 64 * 1024
"""Of the value of one key; the rest is cut, and its length told."""
CONSOLE_CUT_BYTES = 512
"""The same of each value and key in a list, and in a live tail."""
CONSOLE_VERSIONS = 20
"""Versions in the history of one key..."""
CONSOLE_HISTORY_BYTES = 4 * 1024 * 1024
"""... and the bytes that are read for it."""
CONSOLE_NAMES = 200
"""Names of locks, queues and the like of one kind."""
CONSOLE_LEASES = 200
"""Leases in the list, those that end first; and keys of one lease."""
CONSOLE_CLIENTS = 200
"""Clients in the list, those with the most leases..."""
CONSOLE_CLIENTS_READ = 2000
"""... of this many that are looked at."""
CONSOLE_LOAD_ROWS = 20
"""Of the heaviest clients, the heaviest prefixes, and the slow requests, each."""
CONSOLE_EVENTS = 100
"""Events, the newest."""
CONSOLE_REQUEST_BYTES = 64 * 1024
"""JSON of one action."""
MAX_CONSOLE_TAILS = 32
"""Live tails at a time, of one proxy; a user, or a host, has as many at most as are left for all others."""
CONSOLE_SHARED_S = 1.0
"""How long the answer to a view, once made, is given to all pages of that user..."""
CONSOLE_READS_A_SECOND = 100
"""... or longer, if it took more reads than these..."""
MAX_CONSOLE_ANSWERS = 64
"""... and how many such answers a proxy keeps."""
CONSOLE_NODES_S = 5.0
"""How long the addresses of Ray's nodes are good for."""

# A member actor.
OPEN_PAUSE_S = 2.0
"""Between two attempts to open the data while the disk has no room for that, or refuses it; doubles..."""
OPEN_MAX_PAUSE_S = 30.0
"""... up to this."""
START_FREE_BYTES = STATE_WRITE_BUFFER_BYTES
"""A member starts only with this much free on its disk, and as much again as its log takes. After a full disk RocksDB
asks for as much before it takes writes again."""
BACKGROUND_THREADS = 2
"""Snapshots, and hashing: neither waits for the other."""
REQUEST_MARGIN_S = 1.0
"""This long after its deadline a request is refused by the thread that brought it, if nothing else has done so."""
REGISTER_PAUSE_S = 0.1
"""Between two attempts of a member to register its version and place with the cluster..."""
REGISTER_TIMEOUT_S = 5.0
"""... and the longest that one of them takes."""
LOCK_PAUSE_S = 0.05
"""Between two attempts to lock the data directory, which the previous process may still hold."""

# The log of a member.
SLOW_S = 0.1
"""An fsync, the application of a batch or a turn that takes longer is logged."""
RAY_METRICS_PAUSE_S = 5.0
"""Between two times that a process hands its figures to Ray's metrics..."""
MAX_RAY_SAMPLES = 1000
"""... and the most samples that it hands over each time."""
METRICS_SCANNED_KEYS = 1000
"""Keys of each kind of coordination call that a member looks at to count its contenders..."""
METRICS_SCAN_PAUSE_S = 10.0
"""... and at most so often."""
NOTED_APPEND_S = 0.01
"""A write to the log that takes longer is remembered, to say where the time of a slow request went..."""
MAX_SLOW_APPENDS = 64
"""... and this many are."""
SLOW_KEPT = 32
"""The last slow requests that a member remembers, to show them."""
LOAD_SPAN_S = 5.0
"""Load is shown as an average over this long."""
LOAD_SAMPLES = 500
"""Requests of a kind that are looked at in a second, about, to say who sends them and for which keys."""
LOAD_ROWS = 256
"""Clients, and prefixes, that are told apart in a second; the others are counted together."""
MAX_TOP_ROUNDS = 1_000_000
"""Of one `top`, if it is told how many."""
RAY_MESSAGES_WAIT_S = 10.0
"""A command that ends sooner tells what Ray has logged after its own lines..."""
MAX_RAY_MESSAGES = 50
"""... this many messages..."""
RAY_MESSAGE_LETTERS = 500
"""... with so many letters of each."""
CHECK_PERF_S = 60.0
"""`check perf` puts load on a cluster for so long; at most..."""
CHECK_PERF_MAX_S = 600.0
"""... for so long."""
CHECK_SLOWEST_S = 0.5
"""It fails if a put takes longer (etcdctl: the same)..."""
CHECK_STDDEV_S = 0.1
"""... or if their times differ more..."""
CHECK_RATE_FRACTION = 0.9
"""... or if fewer than this part of the puts could be made."""
CHECK_VALUE_BYTES = 1024
"""Of a value of `check perf` and `check datascale`."""
CHECK_DELETE_KEYS = 10_000
"""Both delete what they wrote in steps of so many keys."""
TOP_ROWS = 1024
"""Clients, and prefixes, that `top` shows at most."""
BIG_ANSWER_BYTES = 4 << 20
"""An answer to reads with more bytes is logged."""
LAG_LOG_REVISIONS = 1000
"""A watcher that has this many revisions to read..."""
LAG_LOG_S = 5.0
"""... for this many seconds is logged."""
TRACE_SAMPLED_FRACTION = 0.01
"""The fraction of requests that are sampled where tracing is on and no other is named."""
TRACE_FILE_BYTES = 16 << 20
"""A file of spans is renamed, in place of the one before it, when it is longer."""
TRACE_FOLDER_FILES = 64
"""Files of spans that are kept in a folder."""
TRACE_CLOSE_S = 1.0
"""For spans to be written when a process ends."""
MAX_SPANS_WAITING = 1000
"""Spans that wait to be written; more are dropped."""
MAX_TRACED_ENTRIES = 64
"""Sampled entries whose spans a member may still have to make; of more, the oldest are forgotten."""
TRACEPARENT_LETTERS = 55
"""Of a ``traceparent``, as W3C Trace Context writes it."""
LAG_LOOK_S = 1.0
"""Between two looks for one, and between two looks of a leader at its commit index..."""
COMMIT_TIMES_KEPT = 600
"""... of which it knows so many: a member that lags by more counts as lagging since the oldest."""
CLOCK_TOLD_FRAMES = 16
"""Of so many frames to another member, one says the sender's clock."""
CLOCK_LOOK_S = 20.0
"""The clock of another member's host is judged after this many seconds..."""
CLOCK_LOOK_READINGS = 4
"""... by this many readings at least."""
CLOCK_DIFFERS_S = 0.5
"""A clock that is further off is logged, and shown by ``status`` and ``health``..."""
CLOCK_LOG_PAUSE_S = 3600.0
"""... and logged again after this many seconds, if it still is."""
SHOWN_KEY_BYTES = 64
"""Bytes of a key that a log line shows."""
LOG_LINES_PER_WINDOW = 20
"""Lines of one kind that a member or supervisor logs in ``LOG_WINDOW_S``; the others are counted."""
LOG_WINDOW_S = 60.0
MAX_LOG_LINES_WAITING = 1000
"""Lines that wait to be written; beyond that they are dropped."""
LOG_FLUSH_TIMEOUT_S = 1.0
"""How long a process that ends waits for its last lines to be written."""
MAX_LOG_LINE_CHARS = 16_384
"""A longer line (a traceback, say) is truncated."""
LOG_FILE_BYTES = 8 * 1024 * 1024
"""Size at which the log file of a member or supervisor is rotated..."""
LOG_OLD_FILES = 3
"""... and how many earlier ones are kept."""
LOG_STDERR_LINES_PER_WINDOW = 5
"""Lines that a member or supervisor also writes to standard error in ``LOG_WINDOW_S``, which a driver may show."""

# Launching and supervising a cluster, from outside.
MEMBERSHIP_TIMEOUT_S = 120.0
"""Within this a new member is expected to have caught up with the others."""
MAX_MEMBERSHIP_ATTEMPTS = 100
"""By a proxy that has added or removed a member for a client, to promote it or to delete its data, each of them within
MEMBERSHIP_TIMEOUT_S..."""
MEMBERSHIP_PAUSE_S = 2.0
"""... and seconds between two of them."""
UPGRADE_TIMEOUT_S = 300.0
"""Within this all members are expected to have been restarted, one by one."""
SUPERVISOR_PAUSE_DIVISOR = 10
"""A supervisor observes its cluster this many times in ``replace_after``..."""
SUPERVISOR_MIN_PAUSE_S = 0.2
SUPERVISOR_MAX_PAUSE_S = 2.0
"""... but with pauses of at least, and at most, these lengths."""
SUPERVISOR_STATUS_TIMEOUT_S = 1.0
"""How long it waits for the status of all members, if the leader answered the last time."""
SUPERVISOR_OBSERVE_TIMEOUT_S = 20.0
"""A supervisor that observes for longer than this hangs in a call to Ray, and ends its process..."""
SUPERVISOR_STEP_TIMEOUT_S = 150.0
"""... and so it does if one step takes longer than this, which exceeds all the timeouts of a step together."""
ADOPT_AFTER_S = 20.0
"""A supervisor completes an addition that another process has started once it is this old."""
SEARCH_AFTER_S = 1.0
"""A member must be missed for this long before a supervisor looks for its data on all nodes..."""
SEARCH_MIN_PAUSE_S = 15.0
"""... and while it is missed each node is searched again, after this pause at first..."""
SEARCH_MAX_PAUSE_S = 300.0
"""... growing up to this. A node that joins is searched as soon as it is there."""
SEARCH_TIMEOUT_S = 10.0
"""Within this a node must have said what it holds."""
MOVE_STOP_TIMEOUT_S = 0.2
"""For an actor without data to confirm that it stops, before it is killed; mostly its node is gone."""
STEP_RETRY_S = 30.0
"""Until a supervisor tries again what could not be done on a node."""
HUNG_FACTOR = 3
"""A member that answers nothing on a node that is alive hangs once that has lasted this many times
``replace_after``..."""
HUNG_MIN_S = 20.0
"""... and at least this long. If the end of its process does not help within ``replace_after``, or this if that is
longer, it is replaced."""
OPENING_MAX_S = 3600.0
"""A member that says that it is opening its data is not replaced before that has lasted this long: the data is good."""
STUCK_TURN_S = 10.0
"""A turn of a member's loop, or the opening of its data, that takes longer than this may be stuck."""
HUNG_ASK_S = 5.0
"""For a member that seems to hang to answer on its own node, before its process is ended..."""
HUNG_END_S = 10.0
"""... and for that to be dead."""
NODE_SURVEY_PAUSE_S = 2.0
"""Between two checks of a supervisor for nodes that have joined."""
NODE_SURVEY_REPEAT_S = 300.0
"""Until it surveys a known node again."""
MAX_SUPERVISOR_LINES = 200
"""Steps and observations that a supervisor remembers."""
MAX_DESTROYED_MARKERS = 64
"""Markers of clusters that were given up while a node was away, which one folder keeps."""
MEMBERSHIP_STEP_TIMEOUT_S = 30.0
"""For one step of a change of membership."""
LAUNCH_TIMEOUT_S = 60.0
RAY_CONNECT_TIMEOUT_S = 5.0
"""Within this something must answer at the address of a Ray cluster."""
SURVEY_TIMEOUT_S = 30.0
"""Within this every Ray node must have said what data it holds."""
STATUS_TIMEOUT_S = 3.0
"""Within this a member must have answered with its status."""
ADMINISTRATION_CALL_TIMEOUT_S = 3.0
"""Within this a member must have answered an administrative request before another member is asked."""
SETTLE_TIMEOUT_S = 5.0
"""Within this a member that opens its data is expected to have done so, or to say why not."""
SHUTDOWN_TIMEOUT_S = 60.0
"""For stopping all members of a cluster, and..."""
DESTROY_TIMEOUT_S = 120.0
"""... for deleting their data, too."""
STOP_TIMEOUT_S = 10.0
"""For a member to stop by itself before it is killed."""
POLL_PAUSE_S = 0.05
"""Between two checks of a condition that is expected to change."""
PIN_AMOUNT = 0.001
"""How much a member asks of the Ray resource that pins it to its place (every node offers 1 of each)."""

# A proxy's port: HTTP/2 with gRPC, and HTTP/1.1.
PROXY_USERS_LOOK_S = 1.0
"""How long a proxy goes by what it has found, that users are not needed, for clients with certificates."""
MAX_PROXY_SILENT = 1024
"""Connections whose client has said nothing yet; one more closes the oldest of the address that has most."""
MAX_PROXY_WAITING = 4096
"""The same for connections that wait to be let in..."""
MAX_PROXY_HANDSHAKES = 128
"""... and for TLS handshakes under way."""
PROXY_ADMITS_PER_S = 200
"""While requests of others are served, so many connections are let in each second, those of each address in turn..."""
PROXY_ADMITS_AT_ONCE = 200
"""... and so many more after a rest, as quickly as `PROXY_SERVING_ADMITS` and `PROXY_ADMIT_DIVISOR` have it..."""
PROXY_HANDSHAKES_PER_S = 100
"""... on a port with TLS, so many..."""
PROXY_HANDSHAKES_AT_ONCE = 200
"""... and so many more after a rest, likewise."""
PROXY_HANDSHAKE_TURN_S = 1.0
"""Seconds that a TLS handshake has at least, before others that wait displace it."""
PROXY_ADMIT_PAUSE_S = 0.01
"""Until those that wait are looked at again."""
PROXY_ACCEPTS_PER_S = 4000
"""While requests of others are served, so many connections are accepted each second, from whatever address; the kernel
keeps `PROXY_BACKLOG` others, and beyond that their clients have to try again..."""
PROXY_ACCEPTS_AT_ONCE = 4000
"""... and so many at once after a rest."""
PROXY_ACCEPT_PAUSE_S = 0.1
"""After that was exceeded, or a connection could not be accepted."""
PROXY_CROWD_PER_S = 100
"""While requests of others are served, and more connections than this come in a second..."""
PROXY_CROWD_AT_ONCE = 100
"""... and more than this at once after a rest..."""
PROXY_CROWD_PAUSE_S = 0.01
"""... they are not looked at one by one, but all that have come in this time..."""
PROXY_LOOK_DIVISOR = 20
"""... or in longer, so that this takes no larger part of the loop's time..."""
PROXY_LOOK_AT_ONCE_S = 0.05
"""... but this much at once after a rest..."""
PROXY_ROUND_S = 0.005
"""... and no longer at a time, all addresses together that are listened at; one of each at least."""
PROXY_ADMIT_DIVISOR = 5
"""While requests of others are served, no larger part of the loop's time goes into letting connections in, TLS
handshakes included..."""
PROXY_FLOOD_ADMIT_DIVISOR = 60
"""... while an address floods (`PROXY_SOURCE_PER_S`), no larger one than this..."""
PROXY_ADMIT_AT_ONCE_S = 0.05
"""... but this much at once after a rest."""
PROXY_STEP_S = 0.01
"""Of one step of either of them no more is counted: what takes longer is rather a stall of the process..."""
PROXY_SHARE_PAUSE_S = 1.0
"""... and whatever they have taken, the pause after it is no longer."""
PROXY_SOURCE_PER_S = 200
"""While requests of others are served, an address floods of which more connections than this end in a second without a
request..."""
MIN_PROXY_USELESS = 10
"""... or, if there is not the time to accept all that come, this many in a sweep if they are more than half of all
such..."""
MIN_PROXY_STARVED_ROUNDS = 3
"""... which is so once so many rounds of a sweep had to end early: a single one may be a stall."""
MAX_PROXY_CONNECTIONS = 16_384
"""A new connection beyond this closes an idle one; it is refused if none is idle."""
MAX_ADMISSION_CHECKS = 64
"""Connections that are looked at for this..."""
PROXY_DESCRIPTOR_DIVISOR = 2
"""Connections take at most this part of the descriptors that the process may open, if that is less."""
MAX_PROXY_STREAMS = 4096
"""Calls of one connection at one time; more are refused, and sent again later by every gRPC client."""
MAX_HEADER_LIST_BYTES = 32 * 1024
"""Header fields of a request, counted as HTTP/2 does (32 bytes more for each field). A header block and the head of an
HTTP/1.1 request may not be longer either."""
MAX_CONTINUATION_FRAMES = 32
"""Frames in which the rest of one header block may come."""
MAX_REMEMBERED_BLOCKS = 16
"""Header blocks of one connection whose meaning is kept, because clients send the same again and again..."""
REMEMBERED_BLOCK_BYTES = 2048
"""... if the fields have no more bytes than this."""
REMEMBERED_FACTOR = 4
"""What a remembered block takes of memory, against its fields: the block, the fields, and what they mean..."""
PROXY_REMEMBERED_BYTES = 64 * 1024 * 1024
"""... and what those of all connections may take; more are not remembered."""
MAX_REMEMBERED_HEADS = 1024
"""... and their meanings for all connections together, apart from their timeouts."""
RPC_OVERHEAD_BYTES = 512 * 1024
"""What is around keys and values in a message (etcd: grpcOverheadBytes). A watch's answer is cut into fragments that
are shorter than `max_request_bytes` and this."""
MAX_RPC_MESSAGE_BYTES = 1536 * 1024 + RPC_OVERHEAD_BYTES
"""One request of gRPC, or the body of one HTTP request: what etcd's server takes in, its largest request and what is
around it."""
MAX_RPC_STATUS_BYTES = 4096
"""The text of an error, in UTF-8; more is left out."""
PROXY_WINDOW_BYTES = 1024 * 1024
"""What a client may send ahead on one connection before the loop has looked at it."""
PROXY_STREAM_WINDOW_BYTES = 65_535
"""The same for one call: the window that HTTP/2 begins with. A longer message waits for its turn..."""
PROXY_LONG_MESSAGES_BYTES = 64 * 1024 * 1024
"""... until it fits into this, together with the other long messages that are on their way."""
MAX_PROXY_LONG_READS = 16
"""Ranges of keys that a proxy reads, or makes answers of, at one time; others wait. An answer counts as held only once
it is made; before, a page of `max_page_bytes` takes several times its size."""
PROXY_ITEM_BYTES = 256
"""What a key of an answer that is being gathered takes, beside its bytes and those of its value."""
PROXY_LONG_ANSWER_BYTES = 256 * 1024
"""Values in an answer of which a proxy makes one at a time, so that other clients have their turn in between."""
PROXY_LONG_WRITE_BYTES = 16 * 1024
"""A write that is longer waits for its turn..."""
PROXY_LONG_WRITES_BYTES = 8 * 1024 * 1024
"""... until it fits into this, together with those that a proxy has sent to the members and that have not ended. So
what is shorter waits for no more than this."""
PROXY_HELD_BYTES = 512 * 1024 * 1024
"""Requests, and messages of streams, until their handlers are done with them, and unsent answers, of all connections.
Beyond it the connection with the most is closed. The same again for answers that are being gathered, or that wait to be
made; beyond it calls are refused."""
PROXY_RESERVE_DIVISOR = 8
"""An eighth more than `PROXY_HELD_BYTES` is for requests of connections that hold no more than
`PROXY_STREAM_WINDOW_BYTES`: what closed connections have left under way keeps larger ones out before them."""
LARGE_BLOCK_BYTES = 128 * 1024
"""Blocks of memory of this size or more are given back to the kernel by a proxy as soon as they are free."""
PROXY_READ_BYTES = 32 * 1024
"""What one pass of the loop reads of one connection, so that one that sends without end holds up others little..."""
PROXY_PASS_BYTES = 64 * 1024
"""... and of all that have sent something within the last sweep: each has an equal part of this..."""
PROXY_LEAST_READ_BYTES = 2 * 1024
"""... but not less than this."""
PROXY_KEEPALIVE_S = 60
"""After this without traffic, TCP asks whether the client's machine is still there..."""
PROXY_KEEPALIVE_PROBE_S = 20
"""... at this interval..."""
PROXY_KEEPALIVE_PROBES = 3
"""... and closes the connection after this many questions without an answer."""
PROXY_SEND_BYTES = 256 * 1024
"""What a connection puts together before it hands it to the socket; and what its socket may hold before answers wait
and nothing more is read from it."""
PROXY_DROPPED_BYTES = 8 * 1024 * 1024
"""Of the body of an HTTP/1.1 request that was answered before it had come, such as one that is too large. More ends the
connection, and a client that sends all of it before it reads does not see the answer."""
PROXY_STREAM_SEND_BYTES = 256 * 1024
"""Unsent messages of one streaming answer, beyond which its handler waits."""
PROXY_TLS_RETRY_S = 1.0
"""Until files of TLS that could not be read are tried again, though nothing tells that they have changed."""
PROXY_GREETING_S = 10.0
"""Within this a connection must have said what it speaks; an HTTP/1.1 request must have its head complete..."""
PROXY_PARTIAL_S = 10.0
"""... and an HTTP/2 frame or header block its end."""
PROXY_REQUEST_S = 60.0
"""Within this the message or body of a request must be complete..."""
PROXY_STALL_S = 60.0
"""... and an HTTP/1.1 client must have taken something of an answer that waits for it."""
PROXY_IDLE_S = 120.0
"""An HTTP/1.1 connection without a request for this long is closed. HTTP/2 connections stay; one that has been silent
for this long is asked for a sign of life..."""
PROXY_PING_TIMEOUT_S = 20.0
"""... which must come within this."""
PROXY_SWEEP_S = 1.0
"""How often the times above are checked."""
RPC_DEADLINE_STEP_S = 0.05
"""Deadlines of calls are kept to this."""
PROXY_FLOOD_S = 10.0
"""In this time, one connection may send..."""
MAX_FLOOD_FRAMES = 20_000
"""... this many frames beside those that carry requests and a few for each message that it gets..."""
MAX_FLOOD_RESETS = 20_000
"""... and may reset this many calls before it had an answer."""
PROXY_DRAIN_S = 5.0
"""How long calls may go on when a proxy stops..."""
PROXY_STOP_S = 1.0
"""... and how long the news that the others have ended may take to reach their clients."""
PROXY_BACKLOG = 512
"""Connections that the kernel holds until the proxy accepts them, in their order; beyond that their clients try again.
Were it longer, one that comes while others flood would wait longer, and find it full as often."""
PROXY_PASS_ACCEPTS = 512
"""How many of them one pass of its loop accepts..."""
PROXY_PASS_ADMITS = 16
"""... and lets in, which costs more..."""
PROXY_SERVING_ADMITS = 4
"""... fewer while requests of others are served, and after these no more for `PROXY_ADMIT_PAUSE_S`: so many connections
in that time, whatever `PROXY_ADMITS_AT_ONCE` has saved."""

# The command line and the Ray head that it starts.
MAX_STDIN_BYTES = 256 * 1024 * 1024
"""Read from stdin: more than a cluster accepts in one request, unless its limits were raised a hundredfold."""
LOCK_COMMAND_GRACE_S = 5.0
"""Between SIGTERM and SIGKILL, for a command whose lock is lost."""
MAX_NOTICE_BYTES = 16 * 1024
"""Of the file by which a proxy is found on its node."""
GATEWAY_CONNECT_TIMEOUT_S = 2.0
"""How long the command line tries to reach a proxy."""
GATEWAY_PAGE_ITEMS = 2000
"""Keys that it asks a proxy for at a time."""
MAX_GATEWAY_LINE_BYTES = 1 << 30
"""One message of a stream, as JSON: more than a proxy sends."""
MIRROR_TXN_OPERATIONS = 128
"""Changes that `make-mirror` makes in one transaction: what an etcd takes by default."""
MIRROR_RETRY_S = 1.0
"""Before it tries again what has failed."""
MIRROR_REPORT_S = 30.0
"""How often it says how far it is."""
MAX_LOG_TAIL_BYTES = 4 * 1024 * 1024
"""Of one log file, `logs` reads the end..."""
MAX_LOG_TAIL_LINES = 100_000
"""... and prints this many lines at most."""
MAX_WATCH_LINE_BYTES = 1 << 20
"""One request of `watch --interactive`."""
DOCTOR_TIMEOUT_S = 60.0
"""How long `doctor` takes at most; a third of it waits for what is asked of all nodes."""
PROBE_SYNCS = 25
"""Blocks that it writes and syncs on each node."""
PROBE_DIAL_S = 2.0
"""How long one node tries to reach another."""
DOCTOR_SLOW_SYNC_S = 0.010
"""A disk that takes longer for one sync (median) is slow; etcd asks for 10 ms..."""
DOCTOR_MAX_SYNC_S = 0.100
"""... and one that takes this long delays heartbeats beyond what the default timings tolerate."""
DOCTOR_FREE_BYTES = 2 * 1024**3
"""A disk with less free than this is soon too small."""
DOCTOR_MAX_CLOCK_S = 1.0
"""A clock that is further off makes logs and audits hard to read."""
DOCTOR_MIN_FILES = 8192
"""Open files that a member or a proxy may need..."""
DOCTOR_MIN_PROCESSES = 4096
"""... and processes and threads of a Ray node."""
BENCH_MAX_S = 600.0
"""The longest that one measurement of `bench` takes."""
BENCH_MAX_IN_FLIGHT = 4000
"""Calls of `bench` at a time: less than a handle's pending requests, unless the cluster's limits were lowered."""
HEAD_START_TIMEOUT_S = 60.0
"""How long the command line waits for the Ray head that it starts."""
HEAD_IDLE_TIMEOUT_S = 10.0
"""For so long Ray may name the actors of a cluster that was ended, until its head counts as in use."""
HEAD_STOP_TIMEOUT_S = 40.0
"""How long it waits for that head to end; Ray drains a node for up to 30 seconds."""
