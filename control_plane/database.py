"""Owns the connection to the database: SQLite in WAL mode, brought to the newest schema by Alembic when opened.

Sessions of `sessions(engine)` take SQLite's write lock at their first statement (BEGIN IMMEDIATE), so that what they
read is still true when they write; keep them short, and never open one while holding another. Sessions of
`readers(engine)` see one snapshot, wait for nobody and must not write.
"""

from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL
from sqlalchemy.exc import DatabaseError
from sqlalchemy.orm import Session, sessionmaker

from control_plane.home import Home
from skerry.errors import Broken

BUSY_TIMEOUT_MS = 20_000
_MIGRATIONS = Path(__file__).with_name("migrations")


def open_database(home: Home) -> Engine:
    """Open the database of `home`, making or migrating it where needed.

    Raises:
        Broken: the file is no database, cannot be written, or was made by a newer Skerry.
    """
    url = URL.create("sqlite", database=str(home.database))
    # each request has its own session, so the pool must not run dry before the server's threads do
    engine = create_engine(url, connect_args={"check_same_thread": False}, pool_size=10, max_overflow=54)
    event.listen(engine, "connect", _prepare_connection)
    event.listen(engine, "begin", _begin)
    try:
        migrate(engine)
    except DatabaseError as error:
        engine.dispose()
        raise Broken(
            f"{home.database}: expected Skerry's database, got {error.orig}; is the disk full or the file foreign?"
        ) from error
    except Broken:
        engine.dispose()
        raise
    return engine


def sessions(engine: Engine) -> sessionmaker[Session]:
    """Return the maker of sessions that may write; see the module for what that means."""
    return sessionmaker(engine, expire_on_commit=False)


def readers(engine: Engine) -> sessionmaker[Session]:
    """Return the maker of sessions that only read, from one snapshot."""
    return sessionmaker(engine.execution_options(sqlite_begin="DEFERRED"), expire_on_commit=False)


def migrate(engine: Engine) -> None:
    """Bring the schema to the newest revision; raises `Broken` when the database is ahead of this program."""
    config = alembic_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            newest = ScriptDirectory.from_config(config).get_current_head()
            raise Broken(
                f"database: expected revision {newest} or older, got a newer one; upgrade skerry ({error})"
            ) from error


def alembic_config() -> Config:
    """Return Alembic's configuration, without any file outside the package."""
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    config.set_main_option("path_separator", "os")
    return config


def _prepare_connection(connection: Any, _record: Any) -> None:
    # the driver's own transaction handling begins too late to hold a snapshot: it is switched off, see `_begin`
    connection.isolation_level = None
    cursor = connection.cursor()
    # FULL: a device deletes what was acknowledged after a commit, so a commit must survive the power going
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT_MS}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    kind = connection.get_execution_options().get("sqlite_begin", "IMMEDIATE")
    connection.exec_driver_sql(f"PRAGMA query_only={'ON' if kind == 'DEFERRED' else 'OFF'}")
    connection.exec_driver_sql(f"BEGIN {kind}")
