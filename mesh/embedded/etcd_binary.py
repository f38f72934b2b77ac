"""Finds etcd: the one on PATH, else Debian's package, unpacked into the cache without root and without its service.

Debian's postinst would start a clear-text server on 127.0.0.1:2379; a package that is only unpacked runs nothing.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from mesh.embedded.home import starting
from mesh.errors import Code, MeshError

Progress = Callable[[str], None]
_BY_HAND = "install etcd 3.4.23 or newer so that 'etcd' is on PATH (on Debian: apt install etcd-server)"
_COMMAND_S = 300.0


def find_etcd(cache: Path, environ: Mapping[str, str], progress: Progress) -> Path:
    """The path of an etcd that runs here; blocks while it is fetched for the first time.

    Args:
        cache: A folder that stays.
        environ: PATH, and what apt needs (proxies).
        progress: Told in words.

    Raises:
        MeshError: `start_failed`, with the command to type.
    """
    found = shutil.which("etcd", path=environ.get("PATH"))
    if found is not None:
        return Path(found)
    binary = cache / "etcd" / "bin" / "etcd"
    with starting():
        binary.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (binary.parent.parent / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _runs(binary):
                _fetch(binary, environ, progress)
    return binary


def _runs(binary: Path) -> bool:
    """Whether it is there and whole: a copy cut short does not start."""
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, check=False, timeout=30)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _fetch(binary: Path, environ: Mapping[str, str], progress: Progress) -> None:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool, path=environ.get("PATH")) is None:
            raise MeshError(Code.START_FAILED, hint=f"There is no etcd and no {tool} here: {_BY_HAND}.")
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=binary.parent.parent) as name:
        folder = Path(name)
        # apt's own folders belong to root; it takes others by option. Lists are fetched where there are none yet.
        lists, cache = folder / "lists", folder / "cache"
        for wanted in (lists / "partial", cache / "archives" / "partial"):
            wanted.mkdir(parents=True)
        apt = ["apt-get", "-q", "-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={cache}"]
        # As root, apt would drop to a user of its own, which cannot enter this folder.
        apt += ["-o", f"APT::Sandbox::User={_user()}"]
        progress("etcd: reading the package lists")
        _run([*apt, "update"], folder, environ)
        progress("etcd: downloading etcd-server (8 MB)")
        _run([*apt, "download", "etcd-server"], folder, environ)
        packages = sorted(folder.glob("etcd-server_*.deb"))
        if not packages:
            raise MeshError(Code.START_FAILED, hint=f"apt-get download etcd-server brought no package: {_BY_HAND}.")
        _run(["dpkg-deb", "-x", str(packages[0]), str(folder / "unpacked")], folder, environ)
        unpacked = folder / "unpacked" / "usr" / "bin" / "etcd"
        if not _runs(unpacked):
            raise MeshError(Code.START_FAILED, hint=f"The etcd of etcd-server does not run here: {_BY_HAND}.")
        binary.parent.mkdir(exist_ok=True)
        unpacked.replace(binary)
    progress("etcd: unpacked")


def _run(command: list[str], folder: Path, environ: Mapping[str, str]) -> None:
    said = " ".join(command[:1] + [word for word in command[1:] if word in ("update", "download", "etcd-server", "-x")])
    try:
        done = subprocess.run(  # noqa: S603 - fixed words
            command,
            cwd=folder,
            env={**environ, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            timeout=_COMMAND_S,
        )
    except subprocess.TimeoutExpired:
        raise MeshError(Code.START_FAILED, hint=f"'{said}' took longer than {_COMMAND_S:.0f} s: {_BY_HAND}.") from None
    if done.returncode:
        tail = " ".join(done.stdout.split()[-40:])
        raise MeshError(Code.START_FAILED, hint=f"'{said}' failed: {tail} To go on, {_BY_HAND}.")


def _user() -> str:
    return "root" if os.geteuid() == 0 else "_apt"
