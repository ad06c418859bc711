"""Tests for proxyd.accounts.htpasswd."""

from __future__ import annotations

import os
import resource
import stat
import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from proxyd.accounts.htpasswd import AccountsError, PasswordFile, StoredHash, check_name, hash_password, set_password

ALICE = "$2b$04$8cKoJT7eU0OzaTzQ7HJVNuB1havLCeXe3venHPXz99pJRDKjRm1m."
"""Of ``correct horse``."""
BOB = "$2b$05$7UizpVeUH4DbJstFfeu6oePgDbZpKxjb9rHCIe7XsEmEXI1xvugoO"
"""Of ``staple``."""
LETTER_A = "$2b$04$kQtF1TP13hvx4QPN5UFC1e1mjDDmXMnQCPml/CzMzqcwpRf4PfTAa"
"""Of ``a``."""
LONGEST = "$2b$04$qBfwbM4rKIvZGDU.h0IvqOASO8ct0wnmnaWnoWhTI7spLl6yiWiHa"
"""Of 72 times ``x``."""
ARGON2ID = "$argon2id$v=19$m=1600,t=1,p=1$fnYj+KsIwnUTW4Qzdgt1AQ$ujhE0ix44UBuoF8mPBdZC0thAr9jU61ulHBcmT4OtDE"
"""Of ``correct horse``."""


def parse(text: str) -> PasswordFile:
    return PasswordFile.from_text(text, "users")


class ParseTests(SynchronousTestCase):
    """Tests for PasswordFile.from_text."""

    def problems(self, text: str) -> tuple[str, ...]:
        error: AccountsError = self.assertRaises(AccountsError, parse, text)
        return error.problems

    def test_blank_lines_and_comments(self) -> None:
        """Blank lines and comments are left out, and so are blanks around a line."""
        accounts = parse(f"# people\n\n  alice:{ALICE}  \r\n\t\n#bob:{BOB}\nbob:{BOB}")
        self.assertTrue(accounts.verify(b"alice", b"correct horse"))
        self.assertTrue(accounts.verify(b"bob", b"staple"))

    def test_empty(self) -> None:
        """An empty file is one without accounts."""
        self.assertFalse(parse("").verify(b"alice", b""))

    def test_weak_hashes(self) -> None:
        """Every other kind of hash is refused, with the file, the line, the user and the fix, and without the hash."""
        for encoded, problem in {
            "{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=": "a SHA-1 hash is too weak",
            "{SSHA}AAAAAAAAAAAA": "an LDAP password is not accepted",
            "$apr1$abcdefgh$h9FWgUz3n9YxylKLlR5SQ/": "an MD5 (apr1) hash is too weak",
            "$1$abcdefgh$cHJi5PXp/ki/ktXzqlk6I1": "an MD5 (crypt) hash is too weak",
            "$5$abcdefgh$gruCpC7VkOTspMQTTSAR8mtlO9Upms.fwqE5y16JVM.": "a SHA-256 (crypt) hash is not accepted",
            "$6$abcdefgh$ltjgWl6579NluT/Vi1nwEvcil": "a SHA-512 (crypt) hash is not accepted",
            "rqXexS6ZhobKA": "the password is a DES (crypt) hash, which is too weak, or in plain text",
            "secret": "the password is in plain text, or its hash is of an unknown kind",
            "": "the password is in plain text, or its hash is of an unknown kind",
            ALICE + ":comment": "the bcrypt hash is malformed",
            ALICE.replace("$2b$", "$2x$"): "the bcrypt hash is malformed",
            ALICE[:28] + "z" + ALICE[29:]: "the bcrypt hash is malformed",
            ALICE[:-1]: "the bcrypt hash is malformed",
            ALICE.replace("04", "٠٤"): "the bcrypt hash is malformed",
            ALICE.replace("$04$", "$03$"): "bcrypt cost 3 is not between 4 and 15",
            ALICE.replace("$04$", "$16$"): "bcrypt cost 16 is not between 4 and 15",
            ARGON2ID.replace("argon2id", "argon2i"): "of the argon2 hashes only argon2id is accepted",
            ARGON2ID.replace("v=19", "v=16"): "the argon2id hash is malformed",
            ARGON2ID.replace("p=1", "p=0"): "the argon2id hash is malformed",
            ARGON2ID.replace("m=1600,t=1,p=1", "m=8,t=999,p=2"): "the argon2id hash is malformed",
            ARGON2ID.replace("fnYj", "fn!j"): "the argon2id hash is malformed",
            ARGON2ID[:-1]: "the argon2id hash is malformed",
            ARGON2ID[:-1] + "F": "the argon2id hash is malformed",
            ARGON2ID + "AA": "the argon2id hash is malformed",
            ARGON2ID.replace("m=1600", "m=1599"): "argon2id with m=1599,t=1 is not as dear as bcrypt 4 to 15",
            ARGON2ID.replace("t=1", "t=9999"): "argon2id with m=1600,t=9999 is not as dear as bcrypt 4 to 15",
            ARGON2ID.replace("t=1", "t=0"): "argon2id with m=1600,t=0 is not as dear as bcrypt 4 to 15",
        }.items():
            self.assertEqual(
                self.problems(f"alice:{ALICE}\n\nbob:{encoded}"),
                (f"users:3: user 'bob': {problem}; remove the line, or renew it with: proxyd passwd users bob",),
            )

    def test_malformed_line(self) -> None:
        """A line without a colon is not shown: it may be a secret."""
        self.assertEqual(self.problems("secret\n"), ("users:1: the line is not name:hash; remove it",))

    def test_duplicate(self) -> None:
        """A name may have one line only."""
        [problem] = self.problems(f"alice:{ALICE}\nalice:{BOB}")
        self.assertIn("users:2: user 'alice': an earlier line has the same name; ", problem)

    def test_invalid_name(self) -> None:
        """A name with a control character is refused, and shown without it."""
        [problem] = self.problems(f"al\x1bice:{ALICE}")
        self.assertTrue(problem.startswith(r"users:1: user 'al\x1bice': the name holds a control character; "), problem)

    def test_all_problems(self) -> None:
        """All the problems of a file are told at once, a line for each."""
        error = self.assertRaises(AccountsError, parse, f"alice:plain\nbob:{BOB}\n:{ALICE}\n")
        self.assertEqual(len(error.problems), 2)
        self.assertEqual(str(error).count("\n"), 1)

    def test_quoted_fix(self) -> None:
        """The command that fixes a line can be pasted into a shell."""
        error = self.assertRaises(AccountsError, PasswordFile.from_text, "al ice:plain", "my users")
        self.assertTrue(str(error).endswith("proxyd passwd 'my users' 'al ice'"))

    def test_argon2_not_installed(self) -> None:
        """Where the argon2 library is missing, the error says what to install."""
        modules = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "argon2"}
        self.addCleanup(sys.modules.update, modules)
        self.addCleanup(sys.modules.pop, "argon2")
        sys.modules["argon2"] = None  # type: ignore[assignment]  # the import then fails
        [problem] = self.problems(f"alice:{ARGON2ID}")
        self.assertIn("argon2 hashes need a library (pip install 'proxyd[argon2]')", problem)

    @settings(deadline=None)
    @given(st.text(max_size=60))
    def test_junk(self, text: str) -> None:
        """Whatever a file holds, the only error is AccountsError, and what stands behind a colon is not in it."""
        try:
            parse(f"{text}\nbob:canary-7f3a")
        except AccountsError as error:
            self.assertNotIn("canary", str(error) + repr(error))


class VerifyTests(SynchronousTestCase):
    """Tests for PasswordFile.verify."""

    def test_right_and_wrong(self) -> None:
        """The right password of the right account is the only one that passes."""
        accounts = parse(f"alice:{ALICE}\nbob:{BOB}\n")
        for name, password, matches in (
            (b"alice", b"correct horse", True),
            (b"bob", b"staple", True),
            (b"alice", b"staple", False),
            (b"alice", b"correct horse ", False),
            (b"alice", b"", False),
            (b"Alice", b"correct horse", False),
            (b"alice\x00", b"correct horse", False),
            (b"alice\n", b"correct horse", False),
            (b"", b"correct horse", False),
            (b"\xff", b"correct horse", False),
        ):
            self.assertIs(accounts.verify(name, password), matches, (name, password))

    def test_unknown_name(self) -> None:
        """An unknown name never passes, not even with the password that it is checked against."""
        self.assertFalse(parse(f"alice:{ALICE}\nbob:{BOB}\n").verify(b"carol", b"staple"))

    def test_cost_of_unknown_name(self) -> None:
        """An unknown name costs one check of the dearest hash, and a known one its own."""

        def hash_of(rounds: int) -> StoredHash:
            def matches(password: bytes) -> bool:
                asked.append(rounds)
                return True

            return StoredHash(rounds, matches)

        asked: list[int] = []
        accounts = PasswordFile({b"alice": hash_of(16), b"bob": hash_of(64), b"carol": hash_of(32)})
        self.assertEqual([accounts.verify(name, b"") for name in (b"dave", b"alice", b"")], [False, True, False])
        self.assertEqual(asked, [64, 16, 64])

    def test_published_hashes(self) -> None:
        """Hashes of other implementations, with each of the accepted prefixes, are understood."""
        for encoded, password in (
            ("$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW", b"U*U"),
            ("$2y$05$/OK.fbVrR/bpIqNJ5ianF.CE5elHaaO4EbggVDjb8P19RukzXSM3e", b"\xff\xff\xa3"),
            (ARGON2ID, b"correct horse"),
        ):
            accounts = parse(f"alice:{encoded}")
            self.assertTrue(accounts.verify(b"alice", password))
            self.assertFalse(accounts.verify(b"alice", password + b"x"))

    def test_unreadable_for_bcrypt(self) -> None:
        """A password of which bcrypt would read but a part, or the same part twice, does not pass for that part."""
        accounts = parse(f"alice:{LETTER_A}\nbob:{LONGEST}")
        self.assertTrue(accounts.verify(b"alice", b"a"))
        self.assertTrue(accounts.verify(b"bob", b"x" * 72))
        for password in (b"a\x00a", b"a\x00", b"\x00a", b"a\x00b"):
            self.assertFalse(accounts.verify(b"alice", password))
        for password in (b"x" * 73, b"x" * 100_000, b"x" * 72 + b"\x00"):
            self.assertFalse(accounts.verify(b"bob", password))

    def test_long_for_argon2(self) -> None:
        """An argon2 hash reads a password of any length, and NUL."""
        accounts = parse(f"alice:{ARGON2ID}")
        self.assertFalse(accounts.verify(b"alice", b"correct horse\x00" + b"x" * 100))

    def test_unicode_name(self) -> None:
        """Names are compared as UTF-8."""
        accounts = parse(f"jürgen:{ALICE}")
        self.assertTrue(accounts.verify("jürgen".encode(), b"correct horse"))
        self.assertFalse(accounts.verify("jürgen".encode("latin-1"), b"correct horse"))


class PathTests(SynchronousTestCase):
    """Tests for PasswordFile.from_path."""

    def setUp(self) -> None:
        self.path = Path(self.mktemp())

    def test_read(self) -> None:
        """A file is read as UTF-8."""
        self.path.write_text(f"jürgen:{ALICE}\n", encoding="utf-8")
        self.assertTrue(PasswordFile.from_path(self.path).verify("jürgen".encode(), b"correct horse"))

    def test_missing(self) -> None:
        """A file that cannot be read is an error that names it."""
        error = self.assertRaises(AccountsError, PasswordFile.from_path, self.path)
        self.assertEqual(str(error), f"{self.path}: the password file cannot be read: No such file or directory")

    def test_not_utf8(self) -> None:
        """A file in another encoding is an error that names it."""
        self.path.write_bytes(b"j\xfcrgen:secret\n")
        error = self.assertRaises(AccountsError, PasswordFile.from_path, self.path)
        self.assertEqual(str(error), f"{self.path}: the password file is not in UTF-8; save it so")


class CheckNameTests(SynchronousTestCase):
    """Tests for check_name."""

    def test_usable(self) -> None:
        """Names may hold blanks, signs and letters of any script."""
        for name in ("alice", "us@er", "al ice", "jürgen", "小明", "a#b", "x" * 255):
            check_name(name)

    def test_unusable(self) -> None:
        """Names that a line or a client could not carry are refused."""
        for name in ("", "a:b", "#a", " a", "a ", "a\nb", "a\x00", "a\x7f", "a\u2028b", "\udcff", "x" * 256, "ü" * 128):
            self.assertRaises(AccountsError, check_name, name)


class HashPasswordTests(SynchronousTestCase):
    """Tests for hash_password."""

    def test_hash(self) -> None:
        """A new hash is bcrypt's with cost 10."""
        encoded = hash_password(b"correct horse")
        self.assertTrue(encoded.startswith("$2b$10$"))
        self.assertTrue(parse(f"alice:{encoded}").verify(b"alice", b"correct horse"))

    def test_refused(self) -> None:
        """A password that bcrypt cannot read to its end is refused, and so is an empty one."""
        for password, problem in {
            b"": "the password is empty",
            b"canary" * 13: "the password is longer than 72 bytes, and bcrypt reads no more",
            b"canary\x00": "the password holds a NUL byte, and bcrypt reads no further",
        }.items():
            error = self.assertRaises(AccountsError, hash_password, password)
            self.assertEqual(str(error), problem)


class SetPasswordTests(SynchronousTestCase):
    """Tests for set_password."""

    def setUp(self) -> None:
        self.directory = Path(self.mktemp())
        self.directory.mkdir()
        self.path = self.directory / "users"

    def mode(self) -> int:
        return stat.S_IMODE(self.path.stat().st_mode)

    def test_new_file(self) -> None:
        """A new file is readable by its owner alone."""
        set_password(self.path, "alice", b"correct horse")
        self.assertTrue(PasswordFile.from_path(self.path).verify(b"alice", b"correct horse"))
        self.assertEqual((self.mode(), os.listdir(self.directory)), (0o600, ["users"]))

    def test_new_account(self) -> None:
        """A new account goes to the end of the file, and all else stays as it is."""
        for before in ("", "\n", "# none yet", "# none yet\n", f"# people\n\nbob:{BOB}", "carol:plain\n"):
            self.path.write_text(before)
            set_password(self.path, "alice", b"correct horse")
            lines = self.path.read_text().splitlines()
            self.assertEqual(lines[:-1], before.splitlines())
            self.assertTrue(lines[-1].startswith("alice:$2b$10$"))

    def test_new_password(self) -> None:
        """A new password takes the place of the old line, and of all others of that name."""
        self.path.write_text(f"alicea:{BOB}\n  alice:plain\n#alice:{BOB}\nbob:{BOB}\nalice:{ALICE}\n")
        set_password(self.path, "alice", b"correct horse")
        lines = self.path.read_text().splitlines()
        self.assertTrue(lines.pop(1).startswith("alice:$2b$10$"))
        self.assertEqual(lines, [f"alicea:{BOB}", f"#alice:{BOB}", f"bob:{BOB}"])

    def test_mode_kept(self) -> None:
        """The file's mode and owner are kept."""
        self.path.write_text("")
        self.path.chmod(0o640)
        before = self.path.stat()
        set_password(self.path, "alice", b"correct horse")
        after = self.path.stat()
        self.assertEqual(self.mode(), 0o640)
        self.assertEqual((after.st_uid, after.st_gid), (before.st_uid, before.st_gid))
        self.assertNotEqual(after.st_ino, before.st_ino)

    def test_link_kept(self) -> None:
        """A symbolic link stays one, and the file behind it is replaced."""
        link = self.directory / "link"
        link.symlink_to("users")
        set_password(link, "alice", b"correct horse")
        self.assertTrue(link.is_symlink())
        self.assertIn("alice:", self.path.read_text())

    def test_unusable(self) -> None:
        """A name or password that cannot be used changes nothing."""
        self.path.write_text(f"bob:{BOB}\n")
        self.assertRaises(AccountsError, set_password, self.path, "a:b", b"correct horse")
        self.assertRaises(AccountsError, set_password, self.path, "alice", b"")
        self.assertEqual(self.path.read_text(), f"bob:{BOB}\n")

    def test_failed_write(self) -> None:
        """Where the new file cannot be written the old one stays, and nothing is left behind."""
        self.path.write_text(f"bob:{BOB}\n")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # as good as a full disk
        try:
            self.assertRaises(OSError, set_password, self.path, "alice", b"correct horse")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        self.assertEqual((self.path.read_text(), os.listdir(self.directory)), (f"bob:{BOB}\n", ["users"]))

    def test_missing_directory(self) -> None:
        """A directory that is not there is an error of the operating system."""
        self.assertRaises(FileNotFoundError, set_password, self.directory / "none" / "users", "alice", b"correct horse")
