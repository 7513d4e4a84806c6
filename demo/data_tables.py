"""Rows into the web service's tables, as they were long ago."""

from collections.abc import Iterable
from typing import Any

from psycopg2 import sql
from psycopg2.extras import Json, execute_values

_PAGE_ROWS = 2000


class Tables:
    """Inserts rows into the web service's tables."""

    def __init__(self, cursor: Any) -> None:
        self._cursor = cursor

    def insert(self, table: str, rows: Iterable[dict[str, Any]]) -> list[int]:
        """Insert `rows`, which all have the same columns; returns their ids in order.

        Not through the models: their auto_now_add would date everything today.
        """
        rows = list(rows)
        if not rows:
            return []
        columns = list(rows[0])
        statement = sql.SQL("INSERT INTO {} ({}) VALUES %s RETURNING id").format(
            sql.Identifier(table),
            sql.SQL(", ").join(map(sql.Identifier, columns)),
        )
        values = [[_adapted(row[column]) for column in columns] for row in rows]
        found = execute_values(
            self._cursor, statement, values, page_size=_PAGE_ROWS, fetch=True
        )
        return [row[0] for row in found]

    def content_type(self, model: str) -> int:
        """The id that `migrate` gave to a model of the web service."""
        self._cursor.execute(
            "SELECT id FROM django_content_type"
            " WHERE app_label = 'starview_app' AND model = %s",
            [model],
        )
        (found,) = self._cursor.fetchone()
        return int(found)


def _adapted(value: Any) -> Any:
    return Json(value) if isinstance(value, dict) else value
