"""The ways to install proxyd, each with a real pip: after every one of them ``twistd proxyd`` has to exist.

Nothing is downloaded: the environments made here borrow what proxyd depends on from the one that runs the tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent.parent
LIBRARIES = sysconfig.get_path("purelib")
NOT_SOURCE = shutil.ignore_patterns(
    *(".git", ".venv*", ".*_cache", ".hypothesis", "__pycache__", "dropin.cache"),
    *("_trial_temp*", "_build", "build", "dist", "results", "*.egg-info"),
)
FOLDERS = ("benchmarks", "docs", "newsfragments", "proxyd", "tests", "twisted")
FILES = {".ci/run", "CHANGELOG.md", "LICENSE", "Makefile", "README.md", "pyproject.toml", "setup.cfg"}
TWISTD = "from twisted.scripts.twistd import run; run()"
TIMEOUT = 120


class Environment:
    """A virtual environment that can import what the running one has, and whose pip has no network."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.folder = folder
        self.python = str(folder / "bin" / "python")
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        # Only the folder itself: the .pth files in it, such as that of an editable proxyd, do not count from here.
        (folder / "lib" / version / "site-packages" / "borrowed.pth").write_text(LIBRARIES + "\n")

    def install(self, *what: str) -> None:
        """Install by pip, building with the setuptools that is there."""
        options = ["--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed", "--quiet"]
        run(sys.executable, "-m", "pip", "--python", self.python, "install", *options, *what)

    def program(self, name: str) -> str:
        """The path of an installed script."""
        return str(self.folder / "bin" / name)


def run(*command: str, cwd: Path | None = None, **variables: str) -> str:
    """What a program prints; it has to succeed."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")} | variables
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=TIMEOUT)
    assert not done.returncode, f"{command} failed:\n{done.stdout}{done.stderr}"
    return done.stdout


class PackagingTests(SynchronousTestCase):
    """From a checkout to ``twistd proxyd``."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.checkout = self.folder / "checkout"
        shutil.copytree(ROOT, self.checkout, ignore=NOT_SOURCE)
        self.elsewhere = self.folder / "elsewhere"
        self.elsewhere.mkdir()
        self.environment = Environment(self.folder / "environment")

    def build(self, *what: str) -> None:
        """Build archives into the folder of the test."""
        options = ["--no-isolation", "--outdir", str(self.folder)]
        run(sys.executable, "-m", "build", *options, *what, str(self.checkout))

    def assert_works(self, place: Path) -> None:
        """``twistd proxyd`` and ``proxyd`` are there, whatever the working directory, and run what is in ``place``."""
        python = self.environment.python
        self.assertIn("--config", run(python, "-c", TWISTD, "proxyd", "--help", cwd=self.elsewhere))
        self.assertIn("check-config", run(self.environment.program("proxyd"), "--help", cwd=self.elsewhere))
        found = run(python, "-c", "import proxyd; print(proxyd.__file__)", cwd=self.elsewhere)
        self.assertTrue(Path(found).is_relative_to(place), found)

    def test_wheel(self) -> None:
        """An installed wheel works; it brings the plugin, the example files and the type marker, and no tests."""
        self.build("--sdist", "--wheel")
        [wheel] = self.folder.glob("proxyd-*.whl")
        names = set(zipfile.ZipFile(wheel).namelist())

        self.environment.install(str(wheel))

        self.assert_works(self.environment.folder)
        self.assertEqual({name for name in names if name.startswith("twisted/")}, {"twisted/plugins/proxyd_plugin.py"})
        examples = {f"proxyd/defaults/{path.name}" for path in (ROOT / "proxyd" / "defaults").glob("*.ini")}
        self.assertLessEqual({"proxyd/py.typed", *examples}, names)
        self.assertEqual({name.split("/")[0].partition("-")[0] for name in names}, {"proxyd", "twisted"})

    def test_source_archive(self) -> None:
        """The source archive has all that its own ``make check`` needs."""
        self.build("--sdist")
        [archive] = self.folder.glob("proxyd-*.tar.gz")
        with tarfile.open(archive) as opened:
            names = {member.name.partition("/")[2] for member in opened.getmembers()}

        files = [path for folder in FOLDERS for path in (self.checkout / folder).rglob("*") if path.is_file()]
        needed = {str(path.relative_to(self.checkout)) for path in files} | FILES
        self.assertEqual(needed - names, set())

    def test_editable(self) -> None:
        """An editable install works, and runs the checkout."""
        self.environment.install("--editable", str(self.checkout))

        self.assert_works(self.checkout)

    def test_checkout(self) -> None:
        """Without any installation the checkout works where it is the working directory, or on the Python path."""
        python = self.environment.python

        self.assertIn("--config", run(python, "-m", "twisted", "proxyd", "--help", cwd=self.checkout))
        self.assertIn("--config", run(python, "-c", TWISTD, "proxyd", "--help", cwd=self.checkout))
        found = run(python, "-c", TWISTD, "proxyd", "--help", cwd=self.elsewhere, PYTHONPATH=str(self.checkout))
        self.assertIn("--config", found)
