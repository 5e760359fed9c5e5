"""Schema changes (Alembic). Run by `app.migrate.upgrade`."""
