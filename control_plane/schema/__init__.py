"""The database schema: one set of tables for SQLite and PostgreSQL, made by Alembic, read through SQLAlchemy.

Times are UTC; `event_time` columns are the devices' event clocks in seconds since 1970. Bytes of models, data and
artifacts are not here but in the object store, named by SHA-256.

Importing this package knows all tables; each is imported from the module of its subsystem.
"""

from control_plane.schema import delivery, devices, models, releases, telemetry, work
from control_plane.schema.tables import Table

__all__ = ["Table"]
__subsystems__ = (delivery, devices, models, releases, telemetry, work)
