"""What the sync and the async handle have in common: the cluster, a view of its keys, and a share in the hub."""

from __future__ import annotations

import weakref
from typing import Any, Protocol, TypeVar

from ...codec import Codec
from ...errors import InvalidArgument, RequestTimeout
from ...limits import DEFAULT_TIMEOUT_S
from ...schema.key_spaces import RESERVED_SPACE, USER_SPACE
from .. import arguments as check
from ..deadline import time_left
from .hub import Hub, this_process
from .hub_pool import HubShare, open_hub
from .login import Credentials
from .view import View

H = TypeVar("H", bound="Handle")


class _Ending(Protocol):
    """A watch or a copy, which ends with its handle."""

    def _end(self) -> None: ...


class Handle:
    """A handle on one cluster: a namespace, a codec and a default timeout.

    Made by ``raykeeper.connect``; other handles are derived from it. Handles are cheap, and pickle: in another process
    a handle finds its cluster again at the first call.

    Args:
        name: the cluster's name.
        cluster: the cluster's id.
        share: in the hub of this process; ``None`` opens the hub at the first call.
        view: the keys that it sees, and how values are encoded.
        timeout: seconds, for calls that name none.
        credentials: of the user whose calls they are; ``None`` for none.
    """

    def __init__(
        self,
        name: str,
        cluster: int,
        *,
        share: HubShare | None = None,
        view: View | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        credentials: Credentials | None = None,
    ) -> None:
        self._name = name
        self._cluster = cluster
        self._share = share
        self._view = view or View(USER_SPACE, None)
        self._timeout = timeout
        self._credentials = credentials
        self._closed = False
        self._watches: weakref.WeakSet[_Ending] = weakref.WeakSet()
        """Watches and local copies that end with this handle."""

    # -- properties ---------------------------------------------------------------------------------------------------

    @property
    def cluster_name(self) -> str:
        """The cluster's name."""
        return self._name

    @property
    def cluster_id(self) -> int:
        """The cluster's id, drawn at random when it was made."""
        return self._cluster

    @property
    def prefix(self) -> bytes:
        """The prefix of this handle's namespace; ``b""`` if it sees all keys."""
        return self._view.space[len(USER_SPACE) :]

    @property
    def user(self) -> str | None:
        """The name of the user whose calls this handle makes; ``None`` for none."""
        return None if self._credentials is None else self._credentials.user

    @property
    def codec(self) -> Codec | None:
        """The codec of this handle's values; ``None`` if they are bytes."""
        return self._view.codec

    @property
    def timeout(self) -> float:
        """The default timeout of this handle's calls in seconds."""
        return self._timeout

    @property
    def closed(self) -> bool:
        """Whether the handle was closed."""
        return self._closed

    def __repr__(self) -> str:
        more = "".join(
            [
                f", prefix={self.prefix!r}" if self.prefix else "",
                f", codec={check.shown(self.codec)}" if self.codec is not None else "",
                ", closed" if self._closed else "",
            ]
        )
        return f"<{type(self).__name__} of cluster {self._name!r} ({self._cluster:#x}){more}>"

    def __reduce__(self) -> tuple[Any, ...]:
        if self._closed:
            raise InvalidArgument("a closed handle cannot be pickled")
        credentials = self._credentials
        if credentials is not None:
            login = None if self._share is None else self._share.hub.login
            credentials = credentials.without_password(credentials.token if login is None else login.token)
        return _restore, (type(self), self._name, self._cluster, self._view, self._timeout, credentials)

    # -- other handles ------------------------------------------------------------------------------------------------

    def namespace(self: H, prefix: str | bytes) -> H:
        """A handle that sees only the keys under a prefix, and sees them without it. Namespaces nest.

        The names of its locks, queues and other coordination calls, and of its ``request_id``, are its own too.

        ::

            jobs = kv.namespace("jobs/")
            jobs.put("17", "running")        # the key "jobs/17" of kv

        Args:
            prefix: ``str`` or ``bytes``.

        Raises:
            InvalidArgument: the prefix is neither, or the handle is closed.
        """
        space = self._view.space + check.text_or_bytes("a prefix", prefix)
        return self._derive(self._view.narrow(space, self._view.codec))

    def with_codec(self: H, codec: Codec | None) -> H:
        """A handle whose values are Python objects.

        ::

            config = kv.with_codec(raykeeper.codec.JSON)
            config.put("rate", {"limit": 100})
            config.get("rate").value["limit"]

        Args:
            codec: ``raykeeper.codec.JSON``, ``raykeeper.codec.CLOUDPICKLE``, or an object with their ``encode``,
                ``decode`` and ``comparable``; ``None`` makes values bytes again.

        Raises:
            InvalidArgument: it is not a codec, or the handle is closed.
        """
        if codec is not None and not (
            callable(getattr(codec, "encode", None))
            and callable(getattr(codec, "decode", None))
            and hasattr(codec, "comparable")
        ):
            raise InvalidArgument(f"a codec has encode, decode and comparable; {check.shown(codec)} does not")
        return self._derive(self._view.narrow(self._view.space, codec))

    def reserved(self: H, area: str) -> H:
        """A handle on one area of the reserved space, in which the coordination calls keep their keys.

        For libraries built on the client, not for data: no range of an ordinary handle reaches there. Values are bytes.
        Namespaces do not apply; to respect them, put ``prefix`` into the keys.

        Args:
            area: a name for the area, ``str`` or ``bytes``.

        Raises:
            InvalidArgument: the area is neither, or the handle is closed.
        """
        space = RESERVED_SPACE + check.text_or_bytes("an area", area) + b"/"
        return self._derive(self._view.narrow(space, None))

    def with_timeout(self: H, timeout: float) -> H:
        """A handle with another default timeout.

        Args:
            timeout: seconds.

        Raises:
            InvalidArgument: the timeout is negative or not a number, or the handle is closed.
        """
        handle = self._derive(self._view)
        handle._timeout = check.seconds("timeout", timeout)
        return handle

    def _without_user(self: H) -> H:
        """The same handle for no user: for a process that answers others, none of whom may pass for its own user."""
        if self._credentials is None:
            return self
        return self._with_credentials(None)

    def _with_credentials(self: H, credentials: Credentials | None) -> H:
        """The same handle for another user."""
        return type(self)(self._name, self._cluster, view=self._view, timeout=self._timeout, credentials=credentials)

    def _derive(self: H, view: View) -> H:
        self._check_open()
        return type(self)(
            self._name,
            self._cluster,
            share=self._share,
            view=view,
            timeout=self._timeout,
            credentials=self._credentials,
        )

    # -- calls --------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise InvalidArgument(f"this handle of cluster {self._name!r} is closed")

    def _known_hub(self) -> Hub | None:
        """The hub, if this handle has a share in one of this very process."""
        share = self._share
        if share is not None and share.hub.process == this_process():
            return share.hub
        return None

    def _open_hub(self, timeout: float) -> Hub:
        if timeout <= 0:
            raise RequestTimeout("no time was left to find the cluster", applied=False)
        self._share = share = open_hub(self._name, timeout, self._cluster, self._credentials)
        return share.hub

    def _seconds(self, timeout: float | None) -> float:
        """The seconds that a call may take: its timeout or the handle's, within what the call around it has left."""
        return min(self._timeout if timeout is None else check.seconds("timeout", timeout), time_left())

    def _release(self) -> None:
        self._closed = True
        self._share = None
        for watch in list(self._watches):
            watch._end()


def _restore(
    kind: type[H], name: str, cluster: int, view: View, timeout: float, credentials: Credentials | None = None
) -> H:
    """Make a handle from its pickle; its hub is opened at the first call."""
    return kind(name, cluster, view=view, timeout=timeout, credentials=credentials)
