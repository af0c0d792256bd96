"""Brings the schema of a database to the one this program needs, with Alembic; imported only when there is work."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from groundcontrol.kernel.errors import Unavailable

HEAD = "0002"
"""The newest revision in `versions/`; a test holds it against the folder."""


def migrate(engine: sa.Engine) -> None:
    """Upgrade to HEAD. Refuses a database that a newer program wrote."""
    inspector = sa.inspect(engine)
    current = ""
    if inspector.has_table("alembic_version"):
        with engine.connect() as conn:
            current = str(conn.execute(sa.text("SELECT version_num FROM alembic_version")).scalar() or "")
    if current == HEAD:
        return
    if current > HEAD:
        raise Unavailable(f"the database is of a newer version ({current}, this program knows {HEAD}); upgrade first")
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    with engine.begin() as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, "head")
