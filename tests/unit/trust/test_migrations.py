"""Bringing forward a database that has been in use: foreign keys are enforced, and nothing that counts is lost."""

from pathlib import Path

from alembic import command
from sqlalchemy import inspect, text

from control_plane.database import alembic_config, open_database
from control_plane.home import create_home
from control_plane.schema.tables import Table

USED = """
INSERT INTO release (name, model, version, state, payload, created_at, live_at) VALUES
    ('watch-1', 'watch', 1, 'live', x'00', '2026-01-01 00:00:00', '2026-01-01 00:00:00'),
    ('watch-2', 'watch', 2, 'staged', x'00', '2026-01-01 00:00:00', NULL);
INSERT INTO device (name, profile, group_name, state, certificate_serial, certificate_expires, enrolled_at, online,
                    reported, assign_counter)
    VALUES ('gull', 'p', 'g', 'enrolled', '1', '2026-01-01 00:00:00', '2026-01-01 00:00:00', 0, '{}', 3);
INSERT INTO rollout (id, release, state, reason, created_at) VALUES (1, 'watch-1', 'done', '', '2026-01-01 00:00:00');
INSERT INTO deployment (id, rollout, wave, device, release, manifest, state, reason, bytes_received, measured)
    VALUES ('r1-1', 1, 1, 'gull', 'watch-1', 'm', 'committed', '', 7, '{}');
INSERT INTO publication (sha256, release, length, bytes_sent) VALUES ('aa', 'watch-1', 5, 5);
INSERT INTO tuf_metadata (repository, name, body) VALUES
    ('staged/watch-2', 'targets', x'00'), ('image', 'timestamp', x'01')
"""


def test_releases_rollouts_and_deployments_of_an_older_skerry_are_kept(tmp_path: Path) -> None:
    home = create_home(tmp_path / "home")
    engine = open_database(home)
    config = alembic_config()
    with engine.begin() as connection:
        for table in connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'table'")).scalars().all():
            connection.execute(text("PRAGMA defer_foreign_keys=ON"))
            connection.execute(text(f'DROP TABLE "{table}"'))
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        for statement in USED.split(";"):
            connection.execute(text(statement))
    engine.dispose()

    engine = open_database(home)

    with engine.begin() as connection:
        said = connection.execute(text("SELECT name, state, role, revoked_at FROM release ORDER BY name")).all()
        assert [tuple(row) for row in said] == [
            ("watch-1", "live", "targets", None),
            ("watch-2", "staged", "targets", None),
        ]
        deployment = connection.execute(text("SELECT id, rollout, replaces, bytes_received FROM deployment")).one()
        assert tuple(deployment) == ("r1-1", 1, "", 7)
        # what waited for signatures waits in another form now, and is staged again
        kept = connection.execute(text("SELECT repository FROM tuf_metadata")).scalars().all()
        assert kept == ["image"]
        assert not connection.execute(text("PRAGMA foreign_key_check")).all()
    engine.dispose()


def test_the_newest_schema_has_the_indexes_that_the_tables_say_and_big_tables_are_searched_by_them(
    tmp_path: Path,
) -> None:
    engine = open_database(create_home(tmp_path / "home"))
    with engine.begin() as connection:
        made = {
            name: {index["name"] for index in inspect(connection).get_indexes(name)} for name in Table.metadata.tables
        }
        assert made == {name: {index.name for index in table.indexes} for name, table in Table.metadata.tables.items()}
        for query, index in (
            ("SELECT max(turn) FROM outbox_mark WHERE device = 'gull'", "ix_outbox_mark_turn"),
            ("SELECT blob FROM sample WHERE blob IN ('aa', 'bb') AND id NOT IN (1, 2)", "ix_sample_blob"),
        ):
            (plan,) = connection.execute(text(f"EXPLAIN QUERY PLAN {query}")).all()
            assert index in plan.detail
    engine.dispose()
