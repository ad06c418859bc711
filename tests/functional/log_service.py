"""As much of the log service as its clients notice: signatures, digests, compression, log groups."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Sequence
from urllib.parse import unquote

import lz4.block
from aliyun.log.auth import AuthV4
from aliyun.log.credentials import StaticCredentialsProvider
from aliyun.log.proto import LogGroupRaw

from tests.functional.origin import Received

KEY_ID, KEY = "an-access-key", "its-secret"
REGION = "cn-hangzhou"

_V4 = re.compile(
    rf"SLS4-HMAC-SHA256 Credential={KEY_ID}/[0-9]{{8}}/{REGION}/sls/aliyun_v4_request,Signature=[0-9a-f]{{64}}"
)


class LogService:
    """Takes log groups that are signed with the one key; ``groups`` are those it took."""

    def __init__(self) -> None:
        self.groups: list[LogGroupRaw] = []

    def put(self, request: Received) -> tuple[str, bytes]:
        """Check a request as the service does; status and body of the answer."""
        try:
            self._check(request)
            self.groups.append(log_group(request))
        except Unacceptable as problem:
            return "401 Unauthorized", json.dumps({"errorCode": "Unacceptable", "errorMessage": str(problem)}).encode()
        return "200 OK", b""

    @staticmethod
    def _check(request: Received) -> None:
        _demand(request.method == b"POST", "the method")
        _demand(int(request.value(b"content-length")) == len(request.body), "the length")
        authorization = request.value(b"authorization").decode("ascii")
        if authorization.startswith("LOG "):
            md5 = hashlib.md5(request.body).hexdigest().upper()
            _demand(request.value(b"content-md5").decode("ascii") == md5, "Content-MD5")
            signature = signature_1(request.method, request.target, request.fields)
            _demand(authorization == f"LOG {KEY_ID}:{signature}", "the V1 signature")
        else:
            _demand(_V4.fullmatch(authorization) is not None, "the form of a V4 signature")
            _demand(authorization == _signature_4(request), "the V4 signature")


class Unacceptable(Exception):
    """The log service refuses a request; the message says what is wrong with it."""


def _demand(holds: bool, what: str) -> None:
    if not holds:
        raise Unacceptable(what)


def signature_1(method: bytes, target: bytes, fields: Sequence[tuple[bytes, bytes]]) -> str:
    """The HMAC of a request by version 1: method, digest, type, date, the service's own fields, the resource."""
    values = {name.decode("ascii").lower(): value.decode("ascii") for name, value in fields}
    signed = sorted(name for name in values if name.startswith(("x-log-", "x-acs-")) and name != "x-log-date")
    path, _, query = target.decode("ascii").partition("?")
    resource = f"{path}?{unquote(query)}" if query else path
    first = [method.decode("ascii"), *(values.get(name, "") for name in ("content-md5", "content-type", "date"))]
    text = "\n".join([*first, *(f"{name}:{values[name]}" for name in signed), resource])
    return base64.b64encode(hmac.digest(KEY.encode(), text.encode(), "sha1")).decode("ascii")


def _signature_4(request: Received) -> str:
    """What the SDK's own signer makes of the request as it came; version 4 covers Host and the digest of the body."""
    fields = {name.decode("ascii"): value.decode("ascii") for name, value in request.fields}
    del fields["Authorization"]
    fields = {name: value for name, value in fields.items() if name.lower() not in ("x-log-content-sha256",)}
    path, _, query = request.target.decode("ascii").partition("?")
    params = {name: unquote(value) for name, _, value in (part.partition("=") for part in query.split("&") if part)}
    signer = AuthV4(StaticCredentialsProvider(KEY_ID, KEY), REGION)
    date = request.value(b"x-log-date").decode("ascii")
    return signer._do_sign_request(request.method.decode("ascii"), path, params, fields, request.body, date)


def log_group(request: Received) -> LogGroupRaw:
    """The log group in a request's body.

    Raises:
        Unacceptable: it cannot be decompressed or read.
    """
    size = int(request.value(b"x-log-bodyrawsize"))
    _demand(request.value(b"x-log-compresstype") == b"lz4", "the compression")
    try:
        data = lz4.block.decompress(request.body, uncompressed_size=size)
    except lz4.block.LZ4BlockError as error:
        raise Unacceptable(f"lz4: {error}") from None
    _demand(len(data) == size, "the size of the raw body")
    group = LogGroupRaw()
    group.ParseFromString(data)
    return group


def compressed(group: LogGroupRaw) -> tuple[bytes, int]:
    """A log group as agents send it, and its size before compression."""
    data = group.SerializeToString()
    return lz4.block.compress(data, store_size=False), len(data)
