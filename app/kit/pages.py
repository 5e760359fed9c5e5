"""Pages of lists: opaque cursors over (time, id), newest first, stable while rows are added."""

import base64
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from app.errors import InvalidRequest

MAX_LIMIT = 200
_ID = re.compile(r"[a-z]{3}_[0-9a-z]{1,32}")


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """The last row of the page before."""

    created_at: datetime
    id: str

    def encode(self) -> str:
        """As an opaque text."""
        raw = json.dumps([self.created_at.astimezone(UTC).isoformat(), self.id]).encode()
        return base64.urlsafe_b64encode(raw).decode().rstrip("=")

    @classmethod
    def decode(cls, text: str) -> Self:
        """Inverse of `encode`.

        Raises:
            InvalidRequest: The text is no cursor.
        """
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            created_at, row_id = json.loads(raw)
            cursor = cls(created_at=datetime.fromisoformat(created_at).astimezone(UTC), id=str(row_id))
            ours = cursor.encode() == text and _ID.fullmatch(cursor.id) is not None
        except (ValueError, TypeError, OverflowError, RecursionError):
            ours = False
        if not ours:
            raise InvalidRequest(
                "the cursor is not one of ours", "cursor", text, "the next_cursor of a page of this list"
            )
        return cursor
