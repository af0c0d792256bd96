"""What one owner has spent is asked for in every plan."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    # The first revision makes the tables as they are today: there the index is already.
    op.create_index("spent_by_owner", "spent", ["owner_uid"], if_not_exists=True)


def downgrade() -> None:
    op.drop_index("spent_by_owner", "spent", if_exists=True)
