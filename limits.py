"""All limits and timings of RayKeeper, in one place.

``Limits`` and ``Timings`` are what a cluster spec may change; the constants below them are fixed. Each queue, buffer,
window and wait of the product takes its bound from here. Sizes are bytes, times are seconds.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 62)]
Bytes = Annotated[int, msgspec.Meta(ge=1024, le=1 << 62)]
Seconds = Annotated[float, msgspec.Meta(ge=0.001, le=1e9)]
Share = Annotated[float, msgspec.Meta(ge=0, lt=1)]


class Timings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Timings of the members. Raft's condition holds: message delay << election timeout << time between failures."""

    heartbeat_interval: Seconds = 0.1
    """How often a leader says that it is there; also the length of one Raft tick."""
    election_timeout: Seconds = 1.0
    """A follower that heard nothing for one to two times this long campaigns."""
    session_ttl: Seconds = 60.0
    """A client process that said nothing for this long loses its session."""
    request_ttl: Seconds = 3600.0
    """How long the answer to a request that carried a ``request_id`` is remembered, at least."""
    replace_after: Seconds = 60.0
    """How long a member must be missed before the supervisor may replace it."""
    check_interval: Seconds = 1800.0
    """How often the members compare their contents in the background."""


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds that a cluster spec may change."""

    max_key_bytes: Count = 16 * 1024
    max_request_bytes: Bytes = 1536 * 1024
    """Largest single request (put, transaction, ...): its keys and values together; etcd's default."""
    max_txn_operations: Count = 128
    """Operations in one transaction, nested ones and comparisons included; etcd's default."""
    max_page_items: Count = 1000
    """Keys in one page of a range read; longer ranges are fetched in several pages."""
    max_page_bytes: Bytes = 4 * 1024 * 1024
    """Bytes in one page of a range read, in one answer, and in the values that one transaction leaves as they are; at
    least one item always fits."""
    max_deleted_keys: Count = 10_000
    """Keys that one request may delete, all deletes of a transaction together, and the leases that it revokes."""

    max_batch_requests: Count = 1000
    """Requests of one process that travel in one call."""
    max_batch_bytes: Bytes = 2 * 1024 * 1024
    max_pending_requests: Count = 50_000
    """Requests of one process that wait for an answer; more are refused with ``Unavailable``."""
    max_calls_in_flight: Count = 4
    """Batches of one process on their way to one member."""

    max_inbox_batches: Count = 4096
    """Client batches that wait in one member; more are refused with ``Unavailable``."""
    max_inbox_bytes: Bytes = 64 * 1024 * 1024
    max_uncommitted_bytes: Bytes = 64 * 1024 * 1024
    """Proposed and not yet committed bytes at a leader; more proposals are refused with ``Unavailable``."""
    max_append_bytes: Bytes = 1024 * 1024
    """Entries in one AppendEntries (at least one always fits)."""
    max_append_messages_in_flight: Count = 64
    max_append_bytes_in_flight: Bytes = 16 * 1024 * 1024
    max_apply_bytes: Bytes = 128 * 1024
    """Entries that one turn of a member's loop applies in one batch (at least one always fits)."""

    max_sessions: Count = 20_000
    max_session_answers: Count = 20_000
    """Answers remembered for one session until the client confirms them."""
    max_session_answer_bytes: Bytes = 32 * 1024 * 1024
    max_remembered_requests: Count = 200_000
    """``request_id`` answers remembered; when full, requests with a new id are refused with ``Unavailable``."""
    max_remembered_request_bytes: Bytes = 256 * 1024 * 1024
    max_scanned_keys: Count = 10_000
    """Keys that one transaction may look at, all its comparisons and ranges together. A kilobyte of values counts as a
    key where they are compared or sorted by; a range at a past revision counts every change since. So many keys may
    they pass by, too, that were deleted in the same frame."""
    max_leases: Count = 100_000
    max_lease_keys: Count = 10_000
    """Keys attached to one lease: they all go in one revision when it ends."""

    log_cut_entries: Count = 20_000
    """The Raft log is cut when it holds this many applied entries beyond ``log_keep_entries``..."""
    log_cut_bytes: Bytes = 64 * 1024 * 1024
    """... or this many bytes."""
    log_keep_entries: Count = 5_000
    """Entries kept behind a cut, so that a member that is a little behind needs no snapshot."""
    log_hold_bytes: Bytes = 512 * 1024 * 1024
    """While a snapshot travels the log behind it is kept, but no more than this; then another snapshot is needed. A
    member that waits for one takes no more entries than this either."""
    snapshot_chunk_bytes: Bytes = 1024 * 1024
    snapshot_bytes_per_second: Bytes = 64 * 1024 * 1024
    """The most that one member sends of snapshots, so that its serving does not suffer."""
    log_cache_bytes: Bytes = 8 * 1024 * 1024
    """Newest entries of the log kept in memory."""
    compaction_slice_keys: Count = 100
    """Versions looked at in one slice of physical compaction, so that it stays short; more while more are written."""

    quota_bytes: Bytes = 8 * 1024**3
    """When the files of a member's state take this much on its disk, the cluster takes no puts until it is well
    below again; the largest that etcd recommends."""
    reserve_bytes: Bytes = 256 * 1024**2
    """The same when so little is free on a member's disk: the Raft log, and whatever else needs no quota to grow, must
    fit into what is left."""


class Compaction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How much of the history a leader keeps, by itself (etcd: auto-compaction-mode and -retention)."""

    mode: Literal["age", "revisions", "off"] = "age"
    """What ``keep`` counts: seconds, or revisions; or that only ``compact`` forgets history."""
    keep: Count = 3600
    """Changes that are newer stay readable and watchable; older ones go some time later."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the members of a cluster agree on at run time: kept in the replicated state, changed by ``Configure``."""

    timings: Timings = Timings()
    limits: Limits = Limits()
    compaction: Compaction = Compaction()
    lanes: bool = True
    """Whether members offer lanes; without, all goes by actor calls. Members take it when they start."""
    lease_reads: bool = False
    """Whether a leader answers reads without asking the others while its lease runs. Decided when the cluster is made:
    were it switched on later, members that did not know yet could still help to depose a leader that counts on them."""
    clock_drift: Share = 0.1
    """How much faster, as a fraction, any member's clock may run than another's; lease reads rest on it
    (``actors/raft/lease.py``)."""


def encode_settings(settings: Settings) -> bytes:
    """Settings as they stand in the replicated state."""
    return msgspec.json.encode(settings)


def decode_settings(data: bytes) -> Settings:
    """The inverse. Raises ``msgspec.MsgspecError`` for anything else."""
    return msgspec.json.decode(data, type=Settings)


# A turn of a member's loop: Raft messages first, then client batches, never longer than this.
TURN_EVENTS = 256
TURN_BYTES = 4 * 1024 * 1024
TURN_SECONDS = 0.01
MAX_CLOCK_STEP = 60.0
"""A member looks at its clock with every tick. If that went further than this meanwhile, or back, it has jumped, or the
machine has slept."""
MAX_PROMISE = 3600.0
"""With lease reads: for how long a member stands by a leader that it has heard once, at most. Leaders ask for the
election timeout, or this."""
COMMIT_NOTICE_PAUSE = 0.02
"""For so long the news of a commit waits, where it would cost an actor call, for a message that tells it as well."""
MAX_PEER_FRAMES = 4096
"""Frames from peers that wait in a member's inbox; more are dropped, as a network drops messages."""

GIL_SWITCH = 0.0005
"""How long a thread of a member that computes keeps the interpreter while others want it (Python: 5 ms). The loop gives
it up with every sync and every wait, and must not wait ten times as long for it as for the disk."""

# Threads of a member actor, by concurrency group. Waiters of one group never occupy another.
CLIENT_THREADS = 128
PEER_THREADS = 32
CONTROL_THREADS = 16
WATCH_THREADS = 128
"""One for each client process that watches through this member; polls beyond wait for a thread."""

MAX_MEMBERS = 9
"""Members that a spec may ask for: each more makes every write wait for more disks, and seven survive three deaths."""

PROMOTE_LAG = 100
"""Log entries that a learner may be behind the leader when it becomes a voter."""
FRESH_SHARE = 0.25
"""Share of two election timeouts: who was heard of within this time surely counts for the quorum after a change."""
MAX_MEMBER_ID = 1 << 32
MAX_CHANGES = 2 * MAX_MEMBERS
"""Steps of one change of membership."""

DEFAULT_TIMEOUT = 10.0
"""Timeout of a client call that names none."""
MAX_NESTED_TXNS = 3
WORK_OF_WRITE = 8
"""What a write weighs, counted in keys that are looked at: all take about a microsecond..."""
WORK_OF_DELETE = 4
"""... and a key that is deleted by a command, beside the look at it."""
WORK_OF_COPY = 4
"""... and a kilobyte of values that is written."""
WORK_OF_CHECKS = 4
"""As a shift, of the square of a transaction's operations: what it takes to look whether they get on together."""
APPLY_WORK = 10_000
"""Work after which a turn of a member's loop stops in the middle of a command that holds many writes, and goes on with
it in the next; after half of it, it begins no further entry."""
ENTRY_CHANGES = 5_000
"""Keys that one log entry changes, and kilobytes that it writes or answers, after which it does no more of its writes:
they are all written at once, and whoever sent them sends the rest again."""
PAST_CHANGES = 5_000
"""A read of the past looks at so many changes since; of a longer past, at all keys of its range that ever changed."""

# A member's databases.
INLINE_VALUE_BYTES = 1024
"""Longer values are stored beside the key's latest record, not in it, so that counting and listing keys stays cheap."""
LOG_CUT_SLICE = 2000
"""Entries that one call removes from the log's file; the log begins behind the cut at once."""
STATE_WRITE_BUFFER_BYTES = 16 * 1024 * 1024
LOG_WRITE_BUFFER_BYTES = 16 * 1024 * 1024
DELETES_IN_MEMORY = 4096
"""Deletes of one family after which its memory is moved to a file, which makes looks over them short again."""
BLOCK_CACHE_BYTES = 32 * 1024 * 1024
COPY_BYTES = 1024 * 1024
"""Bytes that packing, hashing and unpacking a snapshot hold in memory at a time."""

MAX_READY_ROUNDS = 8
"""Times that one turn goes round writing, sending and applying before it looks at its inbox again."""
MAX_EXPIRIES_AT_ONCE = 500
"""Sessions that one log entry ends."""
MAX_READ_ROUNDS = 64
"""ReadIndex rounds of one member without an answer; reads that come meanwhile share the next one."""
COMPACTION_PAUSE = 0.003
"""Seconds between two slices of physical compaction."""
COMPACTION_MOST = 20
"""A slice grows to so many times its usual length at most."""
COMPACTION_LOOK = 1.0
"""How often a leader looks whether there is history to forget."""
COMPACTION_SLACK = 20
"""History is compacted when it is longer than what is kept by this part of it, not after each change."""
SNAPSHOT_IDLE = 60.0
"""A snapshot image that nobody fetched from, or sent more of, for this long is removed."""
SNAPSHOT_PAUSE = 5.0
"""Seconds before a snapshot is tried again that failed for a reason of our own, such as a full disk."""
SNAPSHOT_INLINE_BYTES = 8 * 1024
"""A chunk of this size is read in the loop; larger ones are fetched beforehand, in the background."""
SNAPSHOT_SYNC_BYTES = 8 * 1024 * 1024
"""Bytes of a snapshot that are written before they are synced: with more at once, the syncs of others on that disk, on
which every write of the cluster waits, would stand behind them for seconds."""
SNAPSHOT_FETCHED_CHUNKS = 8
"""Chunks in memory that wait to be sent."""

# Reads, in a member.
READ_SCAN = 20_000
"""Keys that one read of a range looks at before it answers with what it has. A client that got no answer for
``CLIENT_SUSPICION`` would ask another member, who would begin from the start."""
READ_SECONDS = 0.1
"""Of the reads in one frame no further one is begun when so much time went to those before it."""

# Watches and leases, in a member.
MAX_WATCH_STREAMS = 4096
MAX_WATCHES_PER_STREAM = 20_000
WATCH_REPLY_BYTES = 2 * 1024 * 1024
"""Events in one answer to a poll (at least one revision of one watch always fits)..."""
WATCH_BATCH_BYTES = 512 * 1024
"""... and of one watch in it, so that one that is far behind leaves room for the others."""
WATCH_SCAN = 5000
"""Changes of any keys that one watch looks through in one go."""
WATCH_STREAM_IDLE = 30.0
"""A stream that nobody polls for this long is dropped..."""
WATCH_FORGET_AT_ONCE = 500
"""... and with every heartbeat so many of its watches are forgotten."""
WATCH_POLL = 5.0
"""The longest that a poll waits for news; also how often a quiet watch hears of progress."""
MAX_LEASES_AT_ONCE = 1000
"""Leases that one log entry ends, renews or checkpoints."""
MAX_LEASES_IN_FRAME = 10_000
"""Leases that one keep-alive or one question names: the loop looks at each."""
LEASE_CHECKPOINT_SHARE = 0.5
"""Share of the TTL: when so little is left of a lease that was kept alive, it is written into the log when it ends."""

# The cluster's clock.
CLOCK_STEP = 30.0
"""Seconds from one reading of the clock in the log to the next while there is something that ages..."""
CLOCK_FRESH = 1.0
"""Seconds for which the end of a lease may be reckoned from a reading that the leader has put into the log."""
CLOCK_FIRST_STEP = 1.0
"""... and to the second one of a leader, who may not live that long; they double from there..."""
CLOCK_SHARE = 1 / 16
"""... and this part of the shortest time that anything is kept, if that is less."""
CLOCK_RESOLUTION = 8
"""Of two readings that far apart as this part of their age, those between them are forgotten."""
MAX_BEGINNINGS = 256
"""Changes of the leader that the clock knows of."""
MAX_PASSED_SECONDS = 1e9
"""What may have passed from one reading to the next."""

MAX_RESERVED_MEMBERS = 16
"""Members that have an id and no part in the configuration yet; more are refused."""
MAX_LEFTOVERS = 20
"""Newest removed members whose actors and data the supervisor still looks for."""
MAX_REMOVED_MEMBERS = 1000
"""Removed members that a cluster remembers, to tell them from strangers."""

# A client process: how long it waits for whom.
CLIENT_SUSPICION = 0.5
"""A batch without an answer for this long is sent to another member too (more if answers have been slow lately)..."""
CLIENT_MAX_SUSPICION = 5.0
"""... but never longer than this."""
CLIENT_MAX_BANISHMENT = 4.0
"""A member that did not answer is not asked again for one second, doubling up to this, while others can be asked."""
CLIENT_BACKOFF = 0.02
"""Pauses between attempts that fail are drawn from 0 to a bound: this, doubling with each failure in a row up to..."""
CLIENT_SHORT_BACKOFF = 0.3
"""... this; and on from there up to..."""
CLIENT_BACKOFF_SHARE = 0.25
"""... this share of the time for which nothing has succeeded, so that a long outage is not made longer by much..."""
CLIENT_MAX_BACKOFF = 5.0
"""... and never beyond this."""
CLIENT_PROBE_REQUESTS = 16
"""Requests in one batch while it is not known who answers, so that nobody is flooded who cannot."""
CLIENT_BATCH_SHARE = 8
"""While batches are under way, another one goes once the requests that wait are this part of those under way."""
CLIENT_MAX_REDIRECTS = 4
"""Leader hints in a row that are followed without a pause."""
CLIENT_MAX_LATE_BATCHES = 32
"""Batches given up as lost, of each kind, whose late answers would still be taken."""
CLIENT_MAX_FRAME_DEADLINE = 60.0
"""The longest deadline that a batch names, whatever its requests' timeouts."""
CLIENT_REFRESH_INTERVAL = 1.0
"""While nobody answers, the list of members is looked up again after a pause drawn from 0 to this, doubling up to..."""
CLIENT_MAX_REFRESH_INTERVAL = 8.0
"""... this. One look serves all hubs of a process that ask within..."""
CLIENT_LOOK_AGE = 0.5
"""... this many seconds."""
ASYNC_CHECK = 1.0
"""Seconds from one look to the next whether an interrupt has left something undone for the coroutines that wait."""
ASYNC_WATCH_CHECK = 30.0
"""The same for a coroutine that waits for events."""
HUB_LINGER = 15.0
"""Seconds that a process keeps its hub after the last handle is gone, for the next one: Ray's workers run one task
after another."""
MAX_IDLE_HUBS = 4
"""Hubs (each of another cluster) that a process keeps so."""

# Calls to Ray, in a process that has a deadline.
MAX_RAY_HELPERS = 64
"""Threads that wait for Ray's control service on others' behalf; while so many wait, further calls wait their turn."""
CLEANUP_GRACE = 0.5
"""Seconds that a call whose time is over still waits for its own cleaning up, which then goes on without it."""
MAX_RAY_CALLS_WAITING = 4096
"""Frames that wait to be handed to Ray as actor calls; more are refused, and sent again later."""

# Watches and leases, in a client process.
WATCH_BUFFER_EVENTS = 10_000
WATCH_BUFFER_BYTES = 4 * 1024 * 1024
"""Events that a process holds for one watch whose consumer is slow (and as much again in the consumer's own hands).
With more, the watch rests; it goes on from the store's history once they are taken."""
WATCH_CREATES_AT_ONCE = 1000
WATCH_CREATE_BYTES = 1024 * 1024
"""Watches, and bytes of their keys, that one poll creates."""
WATCH_CREATE_WAIT = 1.0
"""The longest that a member may take to confirm that its newest revision is the cluster's, for a watch from now."""
WATCH_POLL_GRACE = 1.0
"""Seconds past its end after which a poll counts as lost; less for one that is answered at once."""
WATCH_LAG = 2.0
"""A member that has not reached a revision this long after the process knew of it is left."""
WATCH_QUICK_CHANGES = 16
"""Of so many keys that are applied together, and watches of one stream that they concern, the loop tells itself."""
WATCH_QUICK_STREAMS = 8
"""Streams that it tells itself of one change; the others are told by other threads."""
WATCH_LINGER = 10.0
"""A stream is polled on for this long after its last watch has ended, for the next one."""
LEASE_MIN_TTL = 1.0
"""Seconds. Keep-alives go out every third of it, and heartbeats between members must be frequent beside that."""
LEASE_MAX_TTL = 10 * 365 * 86_400.0
LEASE_ID_BITS = 62
"""Of the random id of a lease that a client names itself."""
LEASE_MARGIN = 0.02
"""Share of the TTL by which a client counts a lease as lost before the cluster may end it: the clocks of two machines
do not run at exactly the same rate..."""
LEASE_MIN_MARGIN = 0.05
"""... and whoever waits for the loss needs a moment to hear of it."""
LEASE_LATE_FRAMES = 8
"""Keep-alives given up as lost whose late answers would still be taken."""
LITTER_PAUSE = 1.0
"""Seconds between two looks at whether a process that keeps leases alive must look for dropped ones, because it is idle
or allocates nothing..."""
LITTER_IDLE_SHARE = 0.2
"""... which it is if it used less than this share of a core meanwhile..."""
LITTER_SHARE = 0.005
"""... and the share of a core that looking at everything may cost."""
MAX_ERRANDS = 1000
"""What may wait for the thread of a process that collects garbage and logs; more is left out."""
LEASE_ASK_AGAIN = 0.05
"""Pause before a lease is asked for again of which the leader could not tell."""

# Local copies of a prefix (``client.cached``).
CACHED_MAX_BYTES = 1024 * 1024 * 1024
"""What a copy may hold unless it is told otherwise."""
CACHED_ENTRY_BYTES = 400
"""What a key counts beside its own bytes and its value's."""
CACHED_FIRST_LOOK = 0.005
"""Seconds that somebody waits for a revision before it is asked how far the member is: mostly it comes by itself."""
CACHED_LAST_LOOK = 0.25
"""Between two such questions, at most: the revision does not exist yet."""

# Coordination calls.
RECIPE_PAUSE = 0.05
"""The shortest time between two looks at whether a place in a line is still there."""
RECIPE_MAX_PAUSE = 0.2
"""The longest pause before a change that somebody else was faster with is tried again."""
COUNTER_BITS = 8192
"""Of a counter's value: Python writes and reads numbers of up to 4,300 digits."""
RECIPE_SPARE_LEASES = 4
"""Leases of finished claims that a queue keeps for its next ones."""
RECIPE_LOOK_AT_ONCE = 32
"""Items of a queue that are looked at together for one that is free."""
MAX_PARTITIONS = 4096
RECIPE_MOVES = 32
"""Partitions that one transaction gives back or takes."""
RECIPE_LOOK = 2.0
"""What runs in the background sees within this time that the object it works for is gone."""

# Between members: calls from one member to one other.
MAX_PEER_CALLS = 4
"""Calls under way; what comes up meanwhile gathers, and travels together in the next ones."""
MAX_GIVEN_UP_CALLS = 16
"""Calls without an answer for so long that they no longer count as under way; with more, messages are dropped."""
MAX_PEER_PENDING_MESSAGES = 1024
MAX_PEER_PENDING_BYTES = 32 * 1024 * 1024
"""Messages that wait to be sent; of more, the oldest are dropped."""
PEER_LOOKUP_PAUSE = 0.2
"""Seconds between two attempts to find the actor of a peer."""
MIN_CALL_PATIENCE = 1.0
"""A call is given up after an election timeout, but not sooner than this."""

# Lanes: stream sockets between clients and members, and from each member to each other one.
MAX_LANES = 4096
"""Lanes of one member; further clients go by actor calls."""
MAX_OPEN_FILES = 256
"""Of one database; a quarter of the process's limit where that is less."""
MEMBER_DESCRIPTORS = 65_536
"""What a member raises its soft limit of descriptors to, where the hard one allows."""
RESERVED_DESCRIPTORS = 640
"""Of these, kept free of clients' lanes: two databases (``MAX_OPEN_FILES`` each), strangers, peers, Ray..."""
PEER_DESCRIPTORS = 32
"""... of which so many may be lanes of peers."""
MAX_LANE_FRAME_BYTES = 64 * 1024 * 1024
"""One frame; longer ones go by actor calls."""
MAX_LANE_REQUESTS = 256
"""Requests of one client that wait for an answer; with so many its lane is not read, and it asks by actor calls."""
MAX_LANES_REQUESTS = 8192
"""The same of all clients of a member together; more are refused with ``Unavailable``."""
LANE_READ_BYTES = 256 * 1024
"""Read from one lane at a time, so that each has its turn."""
LANE_BACKLOG_BYTES = 4 * 1024 * 1024
"""Of a client that does not read its answers: with so many bytes of them its lane is not read either..."""
MAX_LANE_BACKLOG_BYTES = 64 * 1024 * 1024
"""... and with so many it is closed."""
PEER_BACKLOG_BYTES = 4 * 1024 * 1024
"""With so many unsent bytes on the lane to a peer, messages go the way of actor calls, which drops what is too much."""
MAX_LANES_BYTES = 512 * 1024 * 1024
"""Bytes that all lanes of a member hold, half-read or unsent; a lane that holds some and wants more is closed."""
MAX_LANE_TOKENS = 4096
"""Tokens that have been given out and not used; of more, the oldest is void."""
LANE_TOKEN_TTL = 10.0
MAX_LANE_STRANGERS = 64
"""Connections that have not shown a token yet; of more, the oldest is closed."""
LANE_HELLO_TIMEOUT = 5.0
"""Seconds in which they must have shown it."""
LANE_OPEN_TIMEOUT = 3.0
"""Seconds in which a lane must have been opened; until then, and if it cannot be, all goes by actor calls."""
LANE_PAUSE = 0.2
"""Seconds from one attempt to open a lane to the next; doubles up to ``LANE_MAX_PAUSE``."""
LANE_MAX_PAUSE = 2.0
LANE_REFUSED_PAUSE = 30.0
"""The same where the member has none to offer: it is only starting, or is to have none, or is full."""
LANE_SILENCE = 5.0
"""A host that takes no bytes, or is silent, for this long is gone."""
LANE_LINGER = 1.0
"""Seconds that a process which closes its lanes gives its last words to arrive."""
LANE_READERS = 2
"""Threads of a member that make answers which may take long."""
LANE_QUICK_READS = 64
"""Reads of single keys that the loop makes itself; what may take longer goes to such a thread."""
CAMPAIGN_STEP = 0.15
"""Followers whose leader's lane has ended campaign one after the other, so many seconds apart..."""
EARLY_CAMPAIGNS = 3
"""... and each this often, should nobody win."""

# Background care, in a member.
MAX_ALARM_LETTERS = 500
"""Of what an alarm says."""
CARE_PAUSE = 0.5
"""Seconds between two looks of a member at its disk: what is written meanwhile must fit into ``reserve_bytes``."""
CARE_PATIENCE = 5.0
"""Seconds in which the leader must have taken an alarm before it is tried anew."""
QUOTA_CLEARS = 0.9
"""An alarm for the quota ends below this share of it."""
RESERVE_CLEARS = 1.25
"""An alarm for the disk ends when this many times the reserve is free."""
RECLAIM_PAUSE = 5.0
"""Seconds between two attempts to give deleted data's space back while such an alarm is on..."""
RECLAIM_SHARE = 0.05
"""... if at least this share of the state's files is such data."""
HASH_SLICE_RECORDS = 500
"""Records that hashing looks at before it lets others run..."""
HASH_WORK_SHARE = 0.25
"""... and the share of a core that it takes."""
MAX_BREATH = 0.05
"""The longest rest after one slice."""
MAX_WAITING_HASHES = 4
"""Contents that a member has been asked to hash and has not begun with."""
CHECK_ATTEMPTS = 3
"""Times that a member is asked for its hash: one that has just been started cannot have one of what was before."""
CHECK_SILENCE = 15.0
"""A member that answers nothing for this long is not waited for."""
REMEMBERED_HASHES = 4
"""Hashes of its content that a member tells of."""
CHECK_TIMEOUT = 600.0
"""Seconds in which all members must have hashed their contents; who has not is not compared."""
CHECK_AGAIN = 60.0
"""Seconds from one comparison to the next at most, while a member's content is known to be odd: it may be mended."""
CHECK_RETRY = 10.0
"""Seconds until the leader tries a comparison again that it could not begin."""

# Backups.
MAX_BACKUP_HEADER_BYTES = 64 * 1024
BACKUP_TIMEOUT = 600.0
"""Seconds in which a backup must have been taken, if the caller names no other time."""
BACKUP_CHUNK_BYTES = 4 * 1024 * 1024
"""What a backup travels in, from a member and to the members of a new cluster."""
BACKUP_CHUNKS_AHEAD = 2
"""Chunks that are asked for before the last one has arrived."""
BACKUP_IDLE = 60.0
"""A backup that nobody fetches any more from its member is dropped after this time."""
BACKUP_BEGIN_TIMEOUT = 120.0
"""Seconds in which a member must have made the image for a backup; more than that, and another one is asked."""
BACKUP_CONFIRM_TIMEOUT = 10.0
"""... in which a member must have applied what the cluster had committed when it was asked; else another is asked."""
BACKUP_CHUNK_TIMEOUT = 60.0
"""Seconds in which a member must have sent one chunk, or all nodes must have stored one..."""
RESTORE_TIMEOUT = 3600.0
"""Seconds in which a cluster must have been restored, if the caller names no other time."""
RESTORE_UNPACK_TIMEOUT = 1800.0
"""... and in which the nodes must have checked and unpacked the whole."""

# A member actor.
NO_SPACE_PAUSE = 2.0
"""Seconds between two attempts to open the data while there is no room for that on the disk."""
BACKGROUND_THREADS = 2
"""Snapshots, and hashing: neither waits for the other."""
REQUEST_MARGIN = 1.0
"""Seconds past its deadline after which a request is refused by the thread that brought it, should nobody else."""
REGISTER_PAUSE = 0.1
"""Seconds between two attempts of a member to tell the cluster of itself..."""
REGISTER_TIMEOUT = 5.0
"""... and the longest that one of them takes."""
LOCK_PAUSE = 0.05
"""Seconds between two attempts to lock the data directory, which the process before this one may still hold."""

# Launching and looking after a cluster, from outside.
MEMBERSHIP_TIMEOUT = 120.0
"""Seconds in which a new member is expected to have caught up with the others."""
UPGRADE_TIMEOUT = 300.0
"""Seconds in which all members are expected to have been restarted, one by one."""
SUPERVISOR_LOOKS = 10
"""A supervisor looks at its cluster this many times in ``replace_after``..."""
SUPERVISOR_MIN_PAUSE = 0.2
SUPERVISOR_MAX_PAUSE = 2.0
"""... but with pauses of these seconds at least, and at most."""
SUPERVISOR_PATIENCE = 1.0
"""Seconds that it waits for all members' word, if the leader answered the last time."""
SUPERVISOR_LOOK_TIMEOUT = 20.0
"""Seconds after which a supervisor that still looks at its cluster hangs in a call of Ray's, and ends itself..."""
SUPERVISOR_STEP_TIMEOUT = 150.0
"""... or after which it does so in a step; more than all the timeouts of one together."""
ADOPT_AFTER = 20.0
"""Seconds after which a supervisor finishes what somebody else has begun to add."""
SEARCH_AFTER = 1.0
"""Seconds for which a member must be missed before a supervisor looks for its data on all nodes..."""
SEARCH_AGAIN = 15.0
"""... and after which it looks at a node again, as long as somebody is missed: so long at first..."""
SEARCH_MAX_PAUSE = 300.0
"""... and so long at last. A node that joins is looked at as soon as it is there."""
SEARCH_TIMEOUT = 10.0
"""Seconds in which a node must have said what it holds."""
MOVE_PATIENCE = 0.2
"""Seconds for an actor that has no data to say that it stops, before it is ended; mostly its node is gone."""
STEP_AGAIN = 30.0
"""Seconds after which a supervisor tries again what could not be done on a node."""
LOOK_AROUND_PAUSE = 2.0
"""Seconds from one look of a supervisor for nodes that have joined to the next."""
LOOK_AROUND_AGAIN = 300.0
"""Seconds after which it looks at a node again that it knows."""
MAX_SUPERVISOR_LINES = 200
"""Steps, and sights, that a supervisor remembers for those who ask."""
MAX_DESTROYED_MARKERS = 64
"""Markers of clusters that were given up while a node was away, which one folder keeps."""
MEMBERSHIP_STEP_TIMEOUT = 30.0
"""Seconds in which a step on the way must have been done."""
LAUNCH_TIMEOUT = 60.0
RAY_CONNECT_TIMEOUT = 5.0
"""Seconds in which something must answer at the address of a Ray cluster."""
SURVEY_TIMEOUT = 30.0
"""Seconds in which every Ray node must have said what data it holds."""
STATUS_TIMEOUT = 3.0
"""Seconds in which a member must have said how it is."""
ADMINISTRATION_PATIENCE = 3.0
"""Seconds in which a member must have answered a request of administration before another one is asked."""
SETTLE_TIMEOUT = 5.0
"""Seconds in which a member that is opening its data is expected to have done so, or to say why not."""
SHUTDOWN_TIMEOUT = 60.0
"""For stopping all members of a cluster, and..."""
DESTROY_TIMEOUT = 120.0
"""... for deleting their data, too."""
STOP_TIMEOUT = 10.0
"""Seconds in which a member must have stopped by itself before it is killed."""
POLL_PAUSE = 0.05
"""Seconds between two looks at something that is bound to change."""
PIN_AMOUNT = 0.001
"""How much a member asks of the Ray resource that pins it to its place (every node offers 1 of each)."""
CLIENT_RANGE_RESTARTS = 5
"""A range that is compacted away between two of its pages is begun anew this often."""
MAX_REQUEST_ID_BYTES = 256
REQUEST_DIGEST_BYTES = 16
"""Of what stands for a namespace, and for an operation, beside a ``request_id``."""
MAX_NAME_BYTES = 4096
"""Of what a frame names a thing by: a nonce, a stream, a place, an alarm's words."""
MAX_SETTINGS_BYTES = 64 * 1024
MAX_FRAME_DEADLINE = 3600.0
"""Seconds that a member holds a frame whose sender would wait longer."""
HEAD_START_TIMEOUT = 60.0
"""How long the command line waits for the Ray head that it starts."""
HEAD_STOP_TIMEOUT = 40.0
"""How long it waits for that head to end; Ray drains a node for up to 30 seconds."""
