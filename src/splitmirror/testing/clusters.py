"""A PostgreSQL cluster to try things on: real, small, in a directory of its own.

Run by the host's `postgres` user on a Unix socket only; no other server is touched.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from psycopg.conninfo import make_conninfo

from splitmirror.errors import MissingProgram
from splitmirror.system import programs

_USER = "postgres"
_START_S = 60.0
_PROGRAMS = Path("/usr/lib/postgresql")  # Debian: one directory for each major version

_SETTINGS = {
    "listen_addresses": "",
    "shared_buffers": "16MB",
    "min_wal_size": "32MB",
    "max_wal_size": "128MB",
    "fsync": "on",
    "jit": "off",
    "autovacuum": "off",  # nothing happens that a test has not asked for
}


def newest_programs() -> Path:
    """The newest installed version's directory. Raises MissingProgram."""
    found = sorted(_PROGRAMS.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise MissingProgram("initdb is not installed", hint="apt install postgresql")
    return found[-1].parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A cluster below `home`, which its server's user owns: data, socket, log."""

    home: Path
    bin_dir: Path
    data: Path
    config_file: Path

    @property
    def log(self) -> Path:
        """What the server says."""
        return self.home / "log"

    def dsn(self, **more: str) -> str:
        """A connection string to it, as superuser unless told otherwise."""
        return make_conninfo(
            **{"host": str(self.home), "user": _USER, "dbname": "postgres", **more}
        )

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self._control("start", "-l", str(self.log), "-o", f"-c config_file={self.config_file}")

    def stop(self, how: str = "fast") -> None:
        """Stop the server: smart, fast or immediate. Harmless when it does not run."""
        if (self.data / "postmaster.pid").exists():
            self._control("stop", "-m", how)

    def set(self, settings: Mapping[str, str]) -> None:
        """Append to the configuration; for the next start."""
        with self.config_file.open("a") as file:
            for name, value in settings.items():
                file.write(f"{name} = '{value}'\n")

    def directory(self, name: str) -> Path:
        """A new empty directory beside the data, owned by the server's user."""
        path = self.home / name
        path.mkdir()
        shutil.chown(path, _USER, _USER)
        return path

    def _control(self, *words: str) -> None:
        argv = [str(self.bin_dir / "pg_ctl"), "-D", str(self.data), "-w", *words]
        programs.run(argv, timeout_s=_START_S, user=_USER, env={"HOME": str(self.home)})


@contextmanager
def cluster(
    settings: Mapping[str, str] | None = None,
    *,
    own_wal: bool = False,
    outside: bool = False,
    home: Path | None = None,
    template: Path | None = None,
) -> Iterator[Cluster]:
    """A started cluster, stopped and removed at the end.

    `own_wal`: pg_wal is a link; `outside`: the configuration lies off the data directory, as
    Debian's does. `home`: an existing directory that the postgres user can reach. `template`: the
    data directory of a cluster that never ran, copied where initdb would take long.
    """
    made = home or Path(tempfile.mkdtemp(prefix="splitmirror-pg-"))
    made.chmod(0o755)
    shutil.chown(made, _USER, _USER)
    config = made / "etc" if outside else made / "data"
    found = Cluster(
        home=made,
        bin_dir=newest_programs(),
        data=made / "data",
        config_file=config / "postgresql.conf",
    )
    try:
        if template is None:
            _initialize(found, own_wal)
        else:
            _copy(template, found, own_wal)
        if outside:
            _move_configuration(found, config)
        found.set(_SETTINGS | {"unix_socket_directories": str(made)} | dict(settings or {}))
        found.start()
        yield found
    finally:
        found.stop("immediate")
        shutil.rmtree(made)


def _initialize(found: Cluster, own_wal: bool) -> None:
    argv = [str(found.bin_dir / "initdb"), "-D", str(found.data), "-U", _USER, "-A", "trust"]
    argv += ["--no-sync", "--no-instructions", "--data-checksums"]
    argv += ["--waldir", str(found.home / "wal")] if own_wal else []
    programs.run(argv, timeout_s=_START_S, user=_USER, env={"HOME": str(found.home)})


def _copy(template: Path, found: Cluster, own_wal: bool) -> None:
    programs.run(["cp", "-a", str(template), str(found.data)], timeout_s=_START_S)
    if own_wal:
        wal = (found.data / "pg_wal").rename(found.home / "wal")
        (found.data / "pg_wal").symlink_to(wal)


def _move_configuration(found: Cluster, config: Path) -> None:
    config.mkdir()
    for name in ("postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
        (found.data / name).rename(config / name)
    for path in (config, *config.iterdir()):
        shutil.chown(path, _USER, _USER)
    found.set(
        {
            "data_directory": str(found.data),
            "hba_file": str(config / "pg_hba.conf"),
            "ident_file": str(config / "pg_ident.conf"),
        }
    )
