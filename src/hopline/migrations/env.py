"""Alembic runs this file to run the revisions, on the connection, and in the transaction, that it was given."""

from alembic import context

from hopline.migrations.state import VERSION_TABLE

context.configure(connection=context.config.attributes["connection"], version_table=VERSION_TABLE)
context.run_migrations()
