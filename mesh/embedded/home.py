"""The folder of one embedded mesh, `MESH_HOME`: what lies where, and who may run in it.

config/         the settings folder that every program reads      pki/      certificates and secrets
run/            socket, lock, and what is running                  log/      <part>.log, bounded
etcd/           the control store's data                           ledger/   <region>.db
addresses.json  the addresses, ports and mark of this mesh, picked once
control.json    the control epoch, once the store was recovered
samples.json    the sample tenants and their keys
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mesh.errors import Code, MeshError

_FIRST = frozenset({"run", "log", "etcd", "ledger"})
"""What is made before the addresses are picked."""


@dataclass(frozen=True, slots=True)
class Home:
    """A mesh's folder. Nothing is made by making one of these."""

    path: Path

    @property
    def config(self) -> Path:
        """The settings folder that every program reads."""
        return self.path / "config"

    @property
    def pki(self) -> Path:
        """Certificates and secrets; see `mesh.tls`."""
        return self.path / "pki"

    @property
    def run(self) -> Path:
        """Socket, lock, and what is running."""
        return self.path / "run"

    @property
    def logs(self) -> Path:
        """One log a part."""
        return self.path / "log"

    @property
    def etcd(self) -> Path:
        """The control store's data."""
        return self.path / "etcd"

    @property
    def ledger(self) -> Path:
        """One database a region."""
        return self.path / "ledger"

    @property
    def addresses(self) -> Path:
        """The addresses, ports and mark of this mesh."""
        return self.path / "addresses.json"

    @property
    def control(self) -> Path:
        """The control epoch, once the store was recovered."""
        return self.path / "control.json"

    @property
    def samples(self) -> Path:
        """The sample tenants and their keys."""
        return self.path / "samples.json"

    @property
    def records(self) -> Path:
        """The processes that a supervisor saw."""
        return self.run / "processes.json"

    def log_of(self, part: str) -> Path:
        """Where a part's words go."""
        return self.logs / f"{part}.log"

    def make(self) -> None:
        """Makes the folders, for the owner's eyes only.

        Raises:
            MeshError: `start_failed`, saying which folder and why; also where it holds what is not a mesh's.
        """
        name = str(self.path)
        if not name.isprintable() or any(part in name for part in ("?", "%", "{region}")):
            # A ledger's place is told by a URL, in which these mean something else.
            hint = "MESH_HOME must not have '?', '%', '{region}' or what cannot be printed in its path."
            raise MeshError(Code.START_FAILED, hint=hint)
        with starting():
            # Its mode and its contents become ours: MESH_HOME=/tmp must not lock everybody out of /tmp.
            strange = self.path.is_dir() and not self.addresses.exists() and _foreign(self.path)
        if strange:
            hint = f"{self.path} holds other things than a mesh. Let MESH_HOME name an empty or a new folder."
            raise MeshError(Code.START_FAILED, hint=hint)
        for folder in (self.path, self.run, self.logs, self.etcd, self.ledger):
            with starting():
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                folder.chmod(0o700)

    @contextmanager
    def locked(self) -> Generator[bool]:
        """Holds the home, so that one supervisor runs in it. False: another holds it.

        The kernel drops the lock of a process that dies, so a crash leaves nothing behind.
        """
        with starting():
            descriptor = os.open(self.run / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)


def _foreign(folder: Path) -> bool:
    """Whether a folder is for others too: shared, or with folders that no start cut short leaves behind."""
    shared = bool(folder.stat().st_mode & stat.S_ISVTX)
    return shared or any(entry.is_dir() and entry.name not in _FIRST for entry in folder.iterdir())


@contextmanager
def starting() -> Generator[None]:
    """Turns an `OSError` of setting a mesh up (disk full, no permission) into words with the file's name."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise MeshError(Code.START_FAILED, hint=f"{where}{error.strerror}.") from None


def write_private(path: Path, text: str) -> None:
    """Writes a file whole or not at all, with mode 600.

    Raises:
        MeshError: `start_failed`, with the file's name.
    """
    half = path.with_name(f".{path.name}.{os.getpid()}")
    with starting():
        with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
            file.write(text)
        half.replace(path)


def read_json(path: Path) -> Mapping[str, object]:
    """A JSON object of a file of ours; empty where there is none, or only half of one."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def cache_folder(environ: Mapping[str, str]) -> Path:
    """What all homes of a user share: converted weights, the etcd binary."""
    base = environ.get("XDG_CACHE_HOME") or ""
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "mesh"
