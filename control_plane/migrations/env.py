"""Runs the migrations on the connection that `control_plane.database` hands over."""

from alembic import context

from control_plane.schema import Table

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    # `control_plane.database` begins a real transaction, in which SQLite rolls back tables too
    transactional_ddl=True,
    # SQLite alters tables by copying them
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
