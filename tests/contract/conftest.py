"""Every record store that is present: SQLite always, PostgreSQL where Debian's packages are installed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest


def _programs() -> Path | None:
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    return next((path for path in reversed(versions) if (path / "initdb").exists()), None)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """URL prefix of a private cluster on a UNIX socket, started once; PostgreSQL refuses to run as root."""
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL is installed under /usr/lib/postgresql")
    pytest.importorskip("psycopg")
    directory = Path(tempfile.mkdtemp(prefix="honmaru-pg-", dir="/tmp"))
    user = None
    if os.geteuid() == 0:
        user = next((n for n in ("postgres", "nobody") if any(n == entry.pw_name for entry in pwd.getpwall())), None)
        if user is None:
            pytest.skip("running as root, and there is no user to run PostgreSQL as")
        shutil.chown(directory, user)
    data = directory / "data"

    def run(*argv: str) -> None:
        subprocess.run(argv, user=user, check=True, capture_output=True, cwd=directory, env={"PATH": "/usr/bin:/bin"})

    run(str(programs / "initdb"), "-D", str(data), "-U", "honmaru", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8")
    options = f"-c listen_addresses='' -c unix_socket_directories='{directory}' -c max_connections=100"
    run(str(programs / "pg_ctl"), "-D", str(data), "-w", "-l", str(directory / "log"), "-o", options, "start")
    try:
        yield f"postgresql+psycopg://honmaru@/{{database}}?host={directory}"
    finally:
        run(str(programs / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(directory)


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/records.db"
    import psycopg

    template: str = request.getfixturevalue("postgresql")
    database = f"t{uuid.uuid4().hex}"
    host = template.partition("?host=")[2]
    with psycopg.connect(f"host={host} user=honmaru dbname=postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{database}"')
    return template.format(database=database)
