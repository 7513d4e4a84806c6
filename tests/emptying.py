"""After a test that commits, its rows are removed.

Django's own `flush` truncates every table, which makes new files for some fifty of
them, and then writes content types and permissions anew: half of the suite's time.
"""

from typing import Any

from django.db import connection
from django.test import TransactionTestCase

# Written by `migrate`, and changed by no test.
_KEPT = ("django_content_type", "auth_permission", "django_site")
_LARGE_BYTES = 4 << 20


def use_quick_emptying() -> None:
    def empty(self: Any) -> None:
        _empty()

    TransactionTestCase._fixture_teardown = empty  # type: ignore[attr-defined]


def _empty() -> None:
    tables = connection.introspection.django_table_names(only_existing=True)
    found = " UNION ALL ".join(
        f"SELECT '{table}', pg_relation_size('{table}') > {_LARGE_BYTES}"
        f' WHERE EXISTS (SELECT FROM "{table}")'
        for table in tables
        if table not in _KEPT
    )
    with connection.cursor() as cursor:
        cursor.execute(found)
        is_large = dict(cursor.fetchall())
        # Neither a foreign key nor a trigger that a test has left behind refuses it.
        cursor.execute("SET session_replication_role = replica")
        for table in is_large:
            cursor.execute(
                f'TRUNCATE "{table}" CASCADE'
                if is_large[table]
                else f'DELETE FROM "{table}"'
            )
        cursor.execute("RESET session_replication_role")
