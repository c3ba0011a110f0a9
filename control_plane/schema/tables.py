"""The form that all tables share."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """A datetime that is always aware and UTC: SQLite forgets the zone, so it is put back on reading."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002 -- the interface
        """Refuse naive datetimes, convert the others to UTC."""
        if value is not None and value.tzinfo is None:
            raise ValueError("expected an aware datetime, got a naive one")
        return value.astimezone(UTC) if value is not None else None

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:  # noqa: ARG002 -- same
        """Return aware datetimes."""
        if value is not None and value.tzinfo is None:
            return value.replace(tzinfo=UTC)
        return value


class Table(DeclarativeBase):
    """The declarative root of all tables."""

    type_annotation_map = {  # noqa: RUF012 -- SQLAlchemy reads this class attribute, it is not an instance's
        datetime: UtcDateTime,
        dict[str, Any]: JSON,
        list[Any]: JSON,
    }
