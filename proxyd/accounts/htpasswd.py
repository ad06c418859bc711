"""Password files in the format of htpasswd: who has an account, and whether a password is theirs."""

from __future__ import annotations

import base64
import os
import re
import shlex
import stat
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import bcrypt

MIN_COST, MAX_COST = 4, 15
"""The bcrypt costs that are accepted: 1 ms to 2.3 s for each check; argon2 must cost as much."""
NEW_COST = 10
"""The bcrypt cost of new passwords: 70 ms, so that one core checks fourteen in a second."""
BCRYPT_BYTES = 72
"""As much of a password as bcrypt reads."""
NAME_BYTES = 255
"""As much of a name as RFC 1929 can carry."""
ARGON2_ROUND = 100
"""KiB that argon2 fills in the time of one bcrypt round (measured: 64 MiB three times 139 ms, cost 10 72 ms)."""

_BCRYPT = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
_ARGON2ID = re.compile(r"\$argon2id\$v=19\$m=([0-9]{1,9}),t=([0-9]{1,9}),p=([0-9]{1,2})\$([^$]{11,})\$([^$]{22,})")
_REFUSED = (
    ("$2", "the bcrypt hash is malformed"),
    ("$argon2id$", "the argon2id hash is malformed"),
    ("$argon2", "of the argon2 hashes only argon2id is accepted"),
    ("{SHA}", "a SHA-1 hash is too weak"),
    ("{", "an LDAP password is not accepted"),
    ("$apr1$", "an MD5 (apr1) hash is too weak"),
    ("$1$", "an MD5 (crypt) hash is too weak"),
    ("$5$", "a SHA-256 (crypt) hash is not accepted"),
    ("$6$", "a SHA-512 (crypt) hash is not accepted"),
)
_DES_CRYPT = re.compile(r"[./A-Za-z0-9]{13}")


class AccountsError(Exception):
    """A password file that cannot be used, or a password that cannot be set: one line a problem, no secret in any."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class StoredHash:
    """One account's hash; ``rounds`` is what a check costs, in rounds of bcrypt."""

    rounds: int
    matches: Callable[[bytes], bool] = field(repr=False)


class PasswordFile:
    """The accounts of one password file, as it was when it was read."""

    def __init__(self, hashes: dict[bytes, StoredHash]) -> None:
        self._hashes = hashes
        self._dearest = max(hashes.values(), key=lambda stored: stored.rounds, default=_NOBODY)

    @classmethod
    def from_path(cls, path: Path) -> PasswordFile:
        """Read a file.

        Raises:
            AccountsError: The file cannot be read, or ``from_text`` refuses it.
        """
        return cls.from_text(_read(path), str(path))

    @classmethod
    def from_text(cls, text: str, filename: str) -> PasswordFile:
        """Parse ``name:hash`` lines; blank ones and those that begin with ``#`` are left out.

        Raises:
            AccountsError: With all the problems of the file, each with line, user and what to do.
        """
        hashes: dict[bytes, StoredHash] = {}
        problems = []
        for number, line in enumerate(text.split("\n"), 1):
            entry = line.strip()
            if not entry or entry.startswith("#"):
                continue
            try:
                name, stored = _account(entry, hashes, filename)
                hashes[name] = stored
            except AccountsError as problem:
                problems.append(f"{filename}:{number}: {problem}")
        if problems:
            raise AccountsError(*problems)
        return cls(hashes)

    def verify(self, name: bytes, password: bytes) -> bool:
        """Whether this is the password of that account; slow by design.

        An unknown name costs as much as the dearest of the known, so that time does not tell which names there are.
        """
        stored = self._hashes.get(name)
        matches = (stored or self._dearest).matches(password)
        return matches and stored is not None


def hash_password(password: bytes) -> str:
    """A new bcrypt hash.

    Raises:
        AccountsError: The password is empty, or bcrypt would not read all of it.
    """
    if not password:
        raise AccountsError("the password is empty")
    if len(password) > BCRYPT_BYTES:
        raise AccountsError(f"the password is longer than {BCRYPT_BYTES} bytes, and bcrypt reads no more")
    if b"\0" in password:
        raise AccountsError("the password holds a NUL byte, and bcrypt reads no further")
    return bcrypt.hashpw(password, bcrypt.gensalt(NEW_COST)).decode("ascii")


def set_password(path: Path, name: str, password: bytes) -> None:
    """Give an account a new password, or make a new account; all other lines stay as they are.

    The file is replaced at once, keeping owner and mode; a new one can be read by its owner alone.

    Raises:
        AccountsError: Name or password cannot be used, or the file cannot be read.
        OSError: The file cannot be written; the old one is untouched.
    """
    check_name(name)
    entry = f"{name}:{hash_password(password)}"
    text = _read(path) if path.exists() else ""
    lines = text.removesuffix("\n").split("\n") if text else []
    _replace(path.resolve(), "".join(f"{line}\n" for line in _with_entry(lines, name, entry)))


def check_name(name: str) -> None:
    """Refuse the name of an account that no line, or no client, could carry.

    Raises:
        AccountsError: Says what is wrong with it.
    """
    if not name.isprintable():
        raise AccountsError("the name holds a control character")
    if not name or name != name.strip() or name.startswith("#") or ":" in name:
        raise AccountsError("the name is empty, holds a colon, or begins with # or a blank or ends in one")
    if len(name.encode()) > NAME_BYTES:
        raise AccountsError(f"the name is longer than {NAME_BYTES} bytes")


def _account(entry: str, known: Container[bytes], filename: str) -> tuple[bytes, StoredHash]:
    name, colon, encoded = entry.partition(":")
    if not colon:  # and so it may be anybody's secret
        raise AccountsError("the line is not name:hash; remove it")
    try:
        check_name(name)
        if name.encode() in known:
            raise AccountsError("an earlier line has the same name")
        return name.encode(), _stored_hash(encoded)
    except AccountsError as problem:
        renew = f"proxyd passwd {shlex.quote(filename)} {shlex.quote(name)}"
        raise AccountsError(f"user {name!r}: {problem}; remove the line, or renew it with: {renew}") from None


def _stored_hash(encoded: str) -> StoredHash:
    if match := _BCRYPT.fullmatch(encoded):
        return _bcrypt(match)
    if match := _ARGON2ID.fullmatch(encoded):
        return _argon2id(match)
    for prefix, problem in _REFUSED:
        if encoded.startswith(prefix):
            raise AccountsError(problem)
    if _DES_CRYPT.fullmatch(encoded):
        raise AccountsError("the password is a DES (crypt) hash, which is too weak, or in plain text")
    raise AccountsError("the password is in plain text, or its hash is of an unknown kind")


def _bcrypt(match: re.Match[str]) -> StoredHash:
    cost = int(match[1])
    if not MIN_COST <= cost <= MAX_COST:
        raise AccountsError(f"bcrypt cost {cost} is not between {MIN_COST} and {MAX_COST}")
    encoded = match[0].encode("ascii")

    def matches(password: bytes) -> bool:
        # What bcrypt would not read to its end is refused, after the same time: "a\0a" would pass for "a".
        readable = password.replace(b"\0", b"")[:BCRYPT_BYTES]
        return bcrypt.checkpw(readable, encoded) and readable == password

    return StoredHash(1 << cost, matches)


def _argon2id(match: re.Match[str]) -> StoredHash:
    try:  # an extra, for those whose files have such hashes
        from argon2.exceptions import VerifyMismatchError
        from argon2.low_level import Type, verify_secret
    except ImportError:
        raise AccountsError("argon2 hashes need a library (pip install 'proxyd[argon2]')") from None
    memory, passes, lanes = map(int, match.groups()[:3])
    if not 0 < lanes <= memory // 8 or not all(map(_is_base64, match.groups()[3:])):
        raise AccountsError("the argon2id hash is malformed")
    rounds = memory * passes // ARGON2_ROUND
    if not 1 << MIN_COST <= rounds <= 1 << MAX_COST:
        raise AccountsError(f"argon2id with m={memory},t={passes} is not as dear as bcrypt {MIN_COST} to {MAX_COST}")
    encoded = match[0].encode("ascii")

    def matches(password: bytes) -> bool:
        try:
            return verify_secret(encoded, password, Type.ID)
        except VerifyMismatchError:
            return False

    return StoredHash(rounds, matches)


def _is_base64(text: str) -> bool:
    try:
        octets = base64.b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return False
    return base64.b64encode(octets).decode("ascii").rstrip("=") == text


def _with_entry(lines: Iterable[str], name: str, entry: str) -> Iterator[str]:
    """The lines with ``entry`` in the place of the account's first line, or at the end."""
    written = False
    for line in lines:
        if not line.strip().startswith(f"{name}:"):
            yield line
        elif not written:
            written = True
            yield entry
    if not written:
        yield entry


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise AccountsError(f"{path}: the password file cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise AccountsError(f"{path}: the password file is not in UTF-8; save it so") from None


def _replace(path: Path, text: str) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            if path.exists():
                old = path.stat()
                os.fchown(descriptor, old.st_uid, old.st_gid)  # the proxy must be able to read what root has written
                os.fchmod(descriptor, stat.S_IMODE(old.st_mode))
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


_NOBODY = _stored_hash(f"$2b${NEW_COST}${'.' * 53}")
"""Checked in vain for any name while the file has no account."""
