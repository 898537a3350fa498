"""etcd's JSON gateway: which HTTP path stands for which method, and messages as JSON (etcd: grpc-gateway).

Field names are those of the messages, or in lower camel case in requests. Bytes are in base64, numbers of 64 bits are
text, enums are names; in requests, plain numbers are accepted for either. Zero values are left out. Fields that a
request has and its message has not are ignored. A request of a method without streams is the first JSON value of the
body, and an empty body is an empty message. A body for a stream may hold any number of values, one after the other. The
header ``Grpc-Timeout`` sets a call's deadline.

The texts of errors in the JSON of a request are ours; all others are etcd's.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor

from ...limits import MAX_GATEWAY_REQUEST_BYTES
from .etcd_errors import REQUEST_TOO_LARGE, TOO_MANY_REQUESTS
from .etcdpb.message_pool import Method, methods
from .http_exchange import HttpError, HttpExchange
from .rpc_status import RpcCode, RpcError

JSON_TYPE = "application/json"
_METADATA = "grpc-metadata-"

_PATHS = {
    "/etcdserverpb.KV/": {
        "kv/range": "Range",
        "kv/put": "Put",
        "kv/deleterange": "DeleteRange",
        "kv/txn": "Txn",
        "kv/compaction": "Compact",
    },
    "/etcdserverpb.Watch/": {"watch": "Watch"},
    "/etcdserverpb.Lease/": {
        "lease/grant": "LeaseGrant",
        "lease/revoke": "LeaseRevoke",
        "kv/lease/revoke": "LeaseRevoke",
        "lease/keepalive": "LeaseKeepAlive",
        "lease/timetolive": "LeaseTimeToLive",
        "kv/lease/timetolive": "LeaseTimeToLive",
        "lease/leases": "LeaseLeases",
        "kv/lease/leases": "LeaseLeases",
    },
    "/etcdserverpb.Cluster/": {
        "cluster/member/add": "MemberAdd",
        "cluster/member/remove": "MemberRemove",
        "cluster/member/update": "MemberUpdate",
        "cluster/member/list": "MemberList",
        "cluster/member/promote": "MemberPromote",
    },
    "/etcdserverpb.Maintenance/": {
        "maintenance/alarm": "Alarm",
        "maintenance/status": "Status",
        "maintenance/defragment": "Defragment",
        "maintenance/hash": "Hash",
        "maintenance/hashkv": "HashKV",
        "maintenance/snapshot": "Snapshot",
        "maintenance/transfer-leadership": "MoveLeader",
        "maintenance/downgrade": "Downgrade",
    },
    "/etcdserverpb.Auth/": {
        "auth/enable": "AuthEnable",
        "auth/disable": "AuthDisable",
        "auth/status": "AuthStatus",
        "auth/authenticate": "Authenticate",
        "auth/user/add": "UserAdd",
        "auth/user/get": "UserGet",
        "auth/user/list": "UserList",
        "auth/user/delete": "UserDelete",
        "auth/user/changepw": "UserChangePassword",
        "auth/user/grant": "UserGrantRole",
        "auth/user/revoke": "UserRevokeRole",
        "auth/role/add": "RoleAdd",
        "auth/role/get": "RoleGet",
        "auth/role/list": "RoleList",
        "auth/role/delete": "RoleDelete",
        "auth/role/grant": "RoleGrantPermission",
        "auth/role/revoke": "RoleRevokePermission",
    },
    "/v3lockpb.Lock/": {"lock/lock": "Lock", "lock/unlock": "Unlock"},
    "/v3electionpb.Election/": {
        "election/campaign": "Campaign",
        "election/proclaim": "Proclaim",
        "election/leader": "Leader",
        "election/observe": "Observe",
        "election/resign": "Resign",
    },
}
_METHODS = {path: service + name for service, paths in _PATHS.items() for path, name in paths.items()}
PREFIXES = ("/v3/", "/v3beta/")

_HTTP_STATUS = {
    RpcCode.OK: 200,
    RpcCode.CANCELLED: 408,
    RpcCode.UNKNOWN: 500,
    RpcCode.INVALID_ARGUMENT: 400,
    RpcCode.DEADLINE_EXCEEDED: 504,
    RpcCode.NOT_FOUND: 404,
    RpcCode.ALREADY_EXISTS: 409,
    RpcCode.PERMISSION_DENIED: 403,
    RpcCode.RESOURCE_EXHAUSTED: 429,
    RpcCode.FAILED_PRECONDITION: 400,
    RpcCode.ABORTED: 409,
    RpcCode.OUT_OF_RANGE: 400,
    RpcCode.UNIMPLEMENTED: 501,
    RpcCode.INTERNAL: 500,
    RpcCode.UNAVAILABLE: 503,
    RpcCode.DATA_LOSS: 500,
    RpcCode.UNAUTHENTICATED: 401,
}
_REASONS = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    408: "Request Timeout",
    409: "Conflict",
    429: "Too Many Requests",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}
_TIMEOUT = re.compile(r"([+-]?)0*([0-9]{1,19})([HMSmun])")
_UNIT_NS = {"H": 3600 * 10**9, "M": 60 * 10**9, "S": 10**9, "m": 10**6, "u": 10**3, "n": 1}
_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


def metadata_of(headers: Mapping[str, str]) -> dict[str, str]:
    """What a request's headers are as a call's metadata: the token in ``Authorization``, and all that begin with
    ``Grpc-Metadata-``; names in lower case, as those given."""
    found = {
        name.removeprefix(_METADATA): value
        for name, value in headers.items()
        if name.startswith(_METADATA) and name[len(_METADATA) :][:1] != ":"
    }
    if "authorization" in headers:
        found["authorization"] = headers["authorization"]
    return found


def timeout_of(headers: Mapping[str, str]) -> float:
    """The seconds that a request's ``Grpc-Timeout`` gives its call, as etcd's gateway reads it: infinitely many without
    one, or if it is 0; there may be fewer than 0 (etcd: runtime.AnnotateContext, timeoutDecode).

    Raises:
        RpcError: it is malformed.
    """
    text = headers.get("grpc-timeout", "")
    if not text:
        return math.inf
    parts = _TIMEOUT.fullmatch(text)
    number = 0 if parts is None else int(parts[1] + parts[2])
    if parts is None or not -(1 << 63) <= number < 1 << 63:
        raise _bad(f"invalid grpc-timeout: {text}")
    nanoseconds = number * _UNIT_NS[parts[3]]
    nanoseconds = (nanoseconds + (1 << 63)) % (1 << 64) - (1 << 63)  # what Go makes of a number that is too large
    return nanoseconds / 1e9 or math.inf


def find_method(path: str) -> Method | None:
    """The method that an HTTP path stands for; ``None`` if it stands for none."""
    for prefix in PREFIXES:
        if path.startswith(prefix):
            name = _METHODS.get(path[len(prefix) :])
            return None if name is None else methods()[name]
    return None


# --- requests --------------------------------------------------------------------------------------------------------


async def body_of(exchange: HttpExchange) -> bytes:
    """The whole body of a request whose errors are JSON.

    Raises:
        RpcError: it is too large, or there is no room for it now.
    """
    try:
        return await exchange.body()
    except HttpError as error:
        raise (REQUEST_TOO_LARGE if error.status == 413 else TOO_MANY_REQUESTS).error() from None


def request_of(method: Method, body: bytes) -> bytes:
    """The request of a method without streams.

    Raises:
        RpcError: the body does not begin with its JSON.
    """
    requests = JsonRequests(method)
    for request in requests.feed(body, last=True):
        return request
    return b""


class JsonRequests:
    """Takes the JSON values out of a body that arrives in parts.

    Args:
        method: whose requests they are.
    """

    def __init__(self, method: Method) -> None:
        self._method = method
        self._left = b""

    def feed(self, data: bytes, *, last: bool = False) -> Iterator[bytes]:
        """The requests that end in the next part of the body, which may be the last.

        Raises:
            RpcError: what follows is not such a request.
        """
        self._left += data
        if len(self._left) > MAX_GATEWAY_REQUEST_BYTES:
            raise _bad("request is too large")
        try:
            text = self._left.decode()
        except UnicodeDecodeError as error:
            if last or error.end < len(self._left):
                raise _bad(f"invalid UTF-8 in the request: {error.reason}") from error
            return
        decode, start = json.JSONDecoder().raw_decode, 0
        while True:
            start += len(text[start:]) - len(text[start:].lstrip(" \t\r\n"))
            if start == len(text):
                self._left = b""
                return
            try:
                value, end = decode(text, start)
            except RecursionError as error:
                raise _bad("the request is nested too deeply") from error
            except ValueError as error:
                if last:
                    raise _bad("unexpected EOF" if error.pos >= len(text) else str(error)) from error  # type: ignore[attr-defined]
                self._left = text[start:].encode()
                return
            if end == len(text) and not last and not isinstance(value, (dict, list, str)):
                self._left = text[start:].encode()  # a number or a word may go on
                return
            start = end
            yield self._encode(value)

    def _encode(self, value: Any) -> bytes:
        """One request as gRPC has it."""
        if value is None:
            return b""
        message = self._method.request()
        try:
            json_format.ParseDict(_known(value, message.DESCRIPTOR), message)
        except (json_format.ParseError, ValueError, RecursionError) as error:
            raise _bad(str(error)) from error
        return message.SerializeToString()


def _known(value: Any, descriptor: Any) -> dict[str, Any]:
    """A JSON object without the fields that the message does not have. Base64 is checked: the decoder would skip what
    is none."""
    if not isinstance(value, dict):
        raise ValueError(f"{descriptor.full_name} is an object, not {type(value).__name__}")
    fields = _fields(descriptor)
    return {name: _known_value(each, fields[name]) for name, each in value.items() if name in fields}


def _known_value(value: Any, field: FieldDescriptor) -> Any:
    if isinstance(value, list):
        return [_known_value(each, field) for each in value]
    if value is not None and field.message_type is not None:
        return _known(value, field.message_type)
    if field.type == FieldDescriptor.TYPE_BYTES and isinstance(value, str) and not _BASE64.fullmatch(value):
        raise ValueError(f"illegal base64 data in {field.name}")
    return value


_fields_of: dict[str, Mapping[str, FieldDescriptor]] = {}


def _fields(descriptor: Any) -> Mapping[str, FieldDescriptor]:
    """The fields of a message by both of their names."""
    known = _fields_of.get(descriptor.full_name)
    if known is None:
        known = {name: field for field in descriptor.fields for name in (field.name, field.json_name)}
        _fields_of[descriptor.full_name] = known
    return known


def _bad(text: str) -> RpcError:
    return RpcError(RpcCode.INVALID_ARGUMENT, text)


# --- answers ---------------------------------------------------------------------------------------------------------


def response_json(method: Method, message: bytes) -> bytes:
    """The body that stands for an answer."""
    return _dump(_content(method, message))


def stream_line(method: Method, message: bytes) -> bytes:
    """The line that stands for one answer of a stream."""
    return _dump({"result": _content(method, message)}) + b"\n"


def error_json(error: RpcError) -> tuple[int, bytes]:
    """The HTTP status and the body that stand for an error."""
    body = {"error": error.text, "code": int(error.code), "message": error.text}
    return _HTTP_STATUS[error.code], _dump(body)


def error_line(error: RpcError) -> bytes:
    """The line that stands for an error after which a stream ends."""
    status = _HTTP_STATUS[error.code]
    content = {
        "grpc_code": int(error.code),
        "http_code": status,
        "message": error.text,
        "http_status": _REASONS.get(status, ""),
    }
    return _dump({"error": content}) + b"\n"


def _content(method: Method, message: bytes) -> dict[str, Any]:
    response = method.response.FromString(message)
    content: dict[str, Any] = json_format.MessageToDict(response, preserving_proto_field_name=True)
    return content


def _dump(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
