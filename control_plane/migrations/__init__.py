"""Alembic's migrations of the database, shipped in the wheel and run when the server opens it."""
