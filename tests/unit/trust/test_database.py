"""The database, the settings and the home folder."""

import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy.exc import IntegrityError, OperationalError

from control_plane import events
from control_plane.database import alembic_config, open_database, readers
from control_plane.home import create_home, finish_home, open_home
from control_plane.plane import Plane
from control_plane.schema.devices import Device
from control_plane.schema.releases import Wave
from control_plane.settings import Settings, load_settings, save_settings
from skerry.errors import Broken, Rejected


def test_the_migrations_make_the_schema_of_the_code(plane: Plane) -> None:
    engine = open_database(plane.home)
    config = alembic_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.check(config)
    engine.dispose()


def test_devices_of_before_keep_their_certificates_and_can_lose_them(tmp_path: Path) -> None:
    from sqlalchemy import create_engine, text

    engine = create_engine(f"sqlite:///{tmp_path / 'old.db'}")
    config = alembic_config()
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(
            text(
                "INSERT INTO device (name, profile, group_name, state, certificate_serial, certificate_expires,"
                " enrolled_at, online, reported, assign_counter)"
                " VALUES ('old', 'p', 'g', 'enrolled', 'ab12', '2099-01-01', '2026-01-01', 0, '{}', 0)"
            )
        )
        command.upgrade(config, "head")
        issued = connection.execute(text("SELECT serial, device, expires FROM issued_certificate")).one()
        key = connection.execute(text("SELECT public_key FROM device")).scalar_one()
    engine.dispose()

    assert tuple(issued) == ("ab12", "old", "2099-01-01")
    assert key == ""


def test_writers_come_one_after_the_other(plane: Plane) -> None:
    with plane.sessions.begin() as session:
        now = plane.clock()
        session.add(Device(name="d", profile="p", certificate_serial="", certificate_expires=now, enrolled_at=now))

    def count() -> None:
        for _ in range(20):
            with plane.sessions.begin() as session:
                session.get_one(Device, "d").assign_counter += 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    with plane.readers() as session:
        assert session.get_one(Device, "d").assign_counter == 80


def test_a_reader_waits_for_nobody(plane: Plane) -> None:
    with plane.sessions.begin() as writing:
        events.record(writing, "a", "b", "c")
        writing.flush()
        with plane.readers() as session:
            assert events.newest(session) == 0


def test_foreign_keys_are_enforced(plane: Plane) -> None:
    with pytest.raises(IntegrityError), plane.sessions.begin() as session:
        session.add(Wave(rollout=1, number=1, name="canary", state="waiting"))


def test_a_file_that_is_no_database_is_this_machines_trouble(tmp_path: Path) -> None:
    home = create_home(tmp_path / "home")
    home.database.write_bytes(b"no database at all" * 100)

    with pytest.raises(Broken, match="expected Skerry's database"):
        open_database(home)


def test_events_are_read_in_order_after_an_id(plane: Plane) -> None:
    with plane.sessions.begin() as session:
        for number in range(3):
            events.record(session, "release", "gestures-1", f"event {number}", number=number)

    with plane.readers() as session:
        first, *rest = events.after(session, 0)
        assert [event.data["number"] for event in rest] == [1, 2]
        assert [event.id for event in events.after(session, first.id)] == [event.id for event in rest]
        assert events.newest(session) == rest[-1].id


def test_an_event_of_a_transaction_that_failed_was_never_there(plane: Plane) -> None:
    with plane.sessions() as session:
        events.record(session, "a", "b", "c")
        session.flush()
        session.rollback()

    with plane.readers() as session:
        assert events.newest(session) == 0


def test_settings_come_back_as_they_were_written(tmp_path: Path) -> None:
    settings = Settings(project="watch", host="10.0.0.1", broker="mqtts://broker.example:8883", broker_ca='/a "b"\\c')

    save_settings(settings, tmp_path)

    assert load_settings(tmp_path) == settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("project = 1", "expected str, got 1"),
        ('project = "watch"\nport = "8443"', "expected int, got '8443'"),
        ('project = "watch"\nport = true', "expected int, got True"),
        ("", "expected project"),
        ("project =", "expected settings in TOML"),
    ],
)
def test_settings_of_another_form_are_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "settings.toml").write_text(text)

    with pytest.raises(Broken, match=said):
        load_settings(tmp_path)


@pytest.mark.parametrize("setting", ["pages_port", "broker_port"])
def test_two_listeners_need_two_ports(setting: str) -> None:
    settings = Settings(project="watch")
    with pytest.raises(Rejected, match="different"):
        replace(settings, port=getattr(settings, setting))


def test_a_project_leaves_room_for_the_names_of_devices() -> None:
    with pytest.raises(Rejected, match="at most 32"):
        Settings(project="p" * 33)


def test_a_broker_s_password_is_in_no_refusal() -> None:
    with pytest.raises(Rejected, match="mqtt://HOST:PORT") as refusal:
        Settings(project="watch", broker="mqtt://user:secret@host")
    assert "secret" not in str(refusal.value)


def test_an_ipv6_host_is_written_in_brackets() -> None:
    assert replace(Settings(project="watch"), host="::1").url == "https://[::1]:8443"


def test_a_home_folder_is_one_only_when_it_is_finished(tmp_path: Path) -> None:
    home = create_home(tmp_path / "home")
    with pytest.raises(Broken, match="skerry-server init"):
        open_home(home.path)

    again = create_home(home.path)
    finish_home(again)

    assert open_home(home.path) == home
    with pytest.raises(Rejected, match="expected no home folder yet"):
        create_home(home.path)


def test_a_home_folder_after_its_ceremony_is_never_made_again(tmp_path: Path) -> None:
    home = create_home(tmp_path / "home")
    home.anchor.write_bytes(b"{}")

    with pytest.raises(Rejected, match="expected no home folder yet"):
        create_home(home.path)


def test_a_folder_that_was_open_to_others_is_closed_when_it_becomes_a_home(tmp_path: Path) -> None:
    folder = tmp_path / "home"
    folder.mkdir(mode=0o755)

    create_home(folder)

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff"])
def test_an_operator_token_that_is_damaged_lets_nobody_in(tmp_path: Path, content: bytes) -> None:
    home = create_home(tmp_path / "home")
    (home.path / "operator.token").write_bytes(content)

    with pytest.raises(Broken, match=r"operator\.token"):
        home.operator_token()


def test_readers_cannot_be_used_to_write_by_mistake(plane: Plane) -> None:
    engine = open_database(plane.home)
    with readers(engine)() as session:
        events.record(session, "a", "b", "c")
        with pytest.raises(OperationalError, match="readonly"):
            session.flush()
    engine.dispose()
