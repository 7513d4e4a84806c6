"""The web service changes its audit log: the whole row leaves, and comes back, or none.

Each test changes the table as a migration of the web service would, and undoes that.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.db import IntegrityError, connection

from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.audit_archive import transfer
from starview_app.maintenance.jobs.audit_archive.archive import archive_audit_logs
from starview_app.maintenance.jobs.audit_archive.restore import restore_audit_logs
from starview_app.maintenance.jobs.audit_archive.sharing.worker import Sharing
from starview_app.maintenance.jobs.result import JobResult
from starview_app.maintenance.models import AuditArchive, AuditManifest
from starview_app.maintenance.stores.folder import FolderStore
from tests.archive_processes import (
    OCTOBER,
    Folder,
    add_rows,
    assert_verified,
    table_rows,
)
from tests.factories import execute, rows_hidden

pytestmark = pytest.mark.django_db(transaction=True)

NOW = datetime(2025, 1, 27, 4, 0, 1, tzinfo=UTC)
KNOWN = [
    *("id", "event_type", "timestamp", "success", "message"),
    *("user_id", "username", "ip_address", "user_agent", "metadata"),
]


@pytest.fixture
def place(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "archives")


def archive(place: Folder, **changes: Any) -> JobResult:
    arguments: dict[str, Any] = {
        "now": NOW,
        "days": 30,
        "formats": ("json", "txt"),
        "store": place.store,
        "report": lambda event: None,
        "should_stop": lambda: False,
    }
    return archive_audit_logs(**{**arguments, **changes})


def restore(place: Folder) -> JobResult:
    return restore_audit_logs(
        store=place.store, report=lambda event: None, should_stop=lambda: False
    )


def archived(place: Folder, ending: str) -> str:
    (name,) = [name for name in place.objects() if name.endswith(ending)]
    return place.objects()[name].decode()


def archived_logs(place: Folder) -> list[dict[str, Any]]:
    (name,) = AuditArchive.objects.get(state="archived").names[:1]
    logs: list[dict[str, Any]] = json.loads(place.objects()[name])["logs"]
    return logs


def rows_as_text() -> list[str]:
    """Every column of every row, as PostgreSQL writes it; tells all values apart."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT log::text FROM starview_app_auditlog AS log ORDER BY timestamp, id"
        )
        return [text for (text,) in cursor.fetchall()]


@contextmanager
def column(definition: str, name: str = "added") -> Iterator[None]:
    execute(f'ALTER TABLE starview_app_auditlog ADD COLUMN "{name}" {definition}')
    try:
        yield
    finally:
        execute(f'ALTER TABLE starview_app_auditlog DROP COLUMN IF EXISTS "{name}"')


# {type: values}, as SQL writes them; each goes into a row of its own.
VALUES = {
    "text": ["'plain'", "''", "NULL", "E'a\\nb\\u2028\"\\\\'"],
    "integer": ["0", "-2147483648", "NULL"],
    "numeric(30,10)": ["12345678901234567890.0123456789", "'NaN'"],
    "double precision": ["0.1", "1e308", "'-Infinity'", "'NaN'"],
    "boolean": ["true", "NULL"],
    "uuid": ["'6f1c0d2e-8f5c-4f0e-9d7a-111111111111'"],
    "jsonb": ["""'{"a": [1, null]}'""", "'null'", "NULL", "'\"text\"'"],
    "json": ["""'{"a" :  1, "a": 2}'""", "'null'", "NULL"],
    "text[]": ["ARRAY['a', NULL, 'b,\"c']", "'{}'", "'[0:1]={x,y}'"],
    "bytea": ["'\\x00ff'", "''"],
    "interval": ["'1 mon -3 days +04:05:06.789'"],
    "timestamp": ["'2024-01-01 01:02:03.000004'", "'infinity'"],
    "timestamptz": ["'2024-01-01 01:02:03.000004+05'", "'-infinity'"],
    "date": ["'2024-02-29'", "'0044-03-15 BC'"],
    "time": ["'23:59:59.999999'"],
    "int4range": ["'[1,5)'", "'empty'"],
    "point": ["'(1.5,-2)'"],
    "varchar(5)": ["'abc'"],
    "character(5)": ["'ab'"],
}


@pytest.mark.parametrize("kind", VALUES)
def test_a_column_of_any_type_is_archived_and_comes_back_as_it_was(
    kind: str, place: Folder
) -> None:
    with column(kind):
        numbers = add_rows(count=len(VALUES[kind]))
        for number, value in zip(numbers, VALUES[kind], strict=True):
            execute(
                f"UPDATE starview_app_auditlog SET added = {value} WHERE id = {number}"
            )
        before = rows_as_text()

        archive(place)
        logs = archived_logs(place)
        assert rows_as_text() == []
        assert_verified(place.store)
        result = restore(place)

        assert [list(log) for log in logs] == [[*KNOWN, "added"]] * len(before)
        assert result.problems == []
        assert rows_as_text() == before


def test_a_column_of_the_web_services_own_type_comes_back(place: Folder) -> None:
    execute("CREATE TYPE mood AS ENUM ('calm', 'cross')")
    try:
        with column("mood DEFAULT 'cross'"):
            add_rows()
            before = rows_as_text()
            archive(place)
            restore(place)
            assert rows_as_text() == before
    finally:
        execute("DROP TYPE mood")


@pytest.mark.parametrize(
    "name", ["log", "line", 'a"b', "100%", "%(x)s", "o'clock", "É"]
)
def test_a_column_of_any_name_is_archived_and_comes_back(
    name: str, place: Folder
) -> None:
    quoted = name.replace('"', '""')
    with column("text DEFAULT 'value'", quoted):
        add_rows()
        before = rows_as_text()

        archive(place)
        assert archived_logs(place)[0][name] == "value"
        assert f'{name}="value"' in archived(place, ".txt")
        restore(place)

        assert rows_as_text() == before


def test_the_known_columns_come_first_whatever_their_order_in_the_table(
    place: Folder,
) -> None:
    with column("integer DEFAULT 7", "aaa"), column("text DEFAULT 'x'", "zzz"):
        add_rows()
        archive(place)
        assert list(archived_logs(place)[0]) == [*KNOWN, "aaa", "zzz"]


def test_a_value_that_the_database_computes_is_archived_and_computed_anew(
    place: Folder,
) -> None:
    with column("integer GENERATED ALWAYS AS (length(message)) STORED"):
        add_rows(message="four")
        before = rows_as_text()

        archive(place)
        assert archived_logs(place)[0]["added"] == 4
        restore(place)

        assert rows_as_text() == before


def test_a_required_column_comes_back(place: Folder) -> None:
    add_rows()
    with column("text NOT NULL DEFAULT 'given'"):
        execute("ALTER TABLE starview_app_auditlog ALTER added DROP DEFAULT")
        before = rows_as_text()
        archive(place)
        restore(place)
        assert rows_as_text() == before


# -- the table is another one when the rows come back --------------------------------


def test_a_column_added_since_gets_its_default(place: Folder) -> None:
    add_rows()
    archive(place)
    with column("text NOT NULL DEFAULT 'new'"):
        assert restore(place).problems == []
        assert {row["added"] for row in table_rows().values()} == {"new"}


def test_a_required_column_added_since_without_a_default_is_one_line(
    place: Folder,
) -> None:
    add_rows()
    archive(place)
    with column("text NOT NULL"):
        (problem,) = restore(place).problems
        assert 'null value in column "added"' in problem
        assert "HINT: give a new column a default" in problem
        assert "\n" not in problem
        assert table_rows() == {}


# {how the table refuses: (its change, that undone)}; PostgreSQL shows the row with it.
REFUSALS = {
    'null value in column "other"': ("ADD other text NOT NULL", "DROP other"),
    'violates check constraint "short"': (
        "ADD CONSTRAINT short CHECK (length(username) < 3)",
        "DROP CONSTRAINT short",
    ),
    "invalid input syntax for type integer": (
        "ALTER added DROP DEFAULT, ALTER added TYPE integer USING NULL",
        "ALTER added TYPE text",
    ),
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refusal_shows_nothing_of_what_a_row_says(
    refusal: str, place: Folder
) -> None:
    change, back = REFUSALS[refusal]
    with column("text DEFAULT 'a secret'"):
        add_rows(count=1, username="somebody", ip_address="192.0.2.7")
        archive(place)
        execute(f"ALTER TABLE starview_app_auditlog {change}")
        try:
            (problem,) = restore(place).problems
        finally:
            execute(f"ALTER TABLE starview_app_auditlog {back}")

    assert refusal in problem
    for word in ("somebody", "192.0.2.7", "a secret", "DETAIL", "CONTEXT"):
        assert word not in problem


def test_rows_of_a_column_that_is_gone_are_refused_by_its_name(place: Folder) -> None:
    with column("text DEFAULT 'kept in the archive'"):
        add_rows()
        archive(place)

    (problem,) = restore(place).problems

    assert "column added, starview_app_auditlog has not" in problem
    assert "HINT: add the column to the table, as it was" in problem
    assert table_rows() == {}


def test_one_object_that_does_not_fit_does_not_keep_the_others_back(
    place: Folder,
) -> None:
    with column("text DEFAULT 'x'"):
        add_rows(count=1)
        archive(place)
    (kept,) = add_rows(count=1)
    archive(place, now=NOW.replace(day=28))

    result = restore(place)

    assert len(result.problems) == 1
    assert set(table_rows()) == {kept}


@pytest.fixture
def unique_messages() -> Iterator[None]:
    execute("ALTER TABLE starview_app_auditlog ADD CONSTRAINT once UNIQUE (message)")
    yield
    execute("ALTER TABLE starview_app_auditlog DROP CONSTRAINT once")


@pytest.mark.usefixtures("unique_messages")
def test_a_row_whose_other_key_is_taken_is_a_problem_and_not_passed_over(
    place: Folder,
) -> None:
    add_rows(count=1, message="same")
    archive(place)
    add_rows(NOW, count=1, message="same")
    before = table_rows()

    (problem,) = restore(place).problems

    assert "1 rows of " in problem
    assert "have a unique key" in problem
    assert table_rows() == before


# -- a partitioned log ---------------------------------------------------------------


@pytest.fixture
def partitioned() -> Iterator[None]:
    execute("ALTER TABLE starview_app_auditlog RENAME TO plain_auditlog")
    execute(
        "CREATE TABLE starview_app_auditlog ("
        "  LIKE plain_auditlog INCLUDING DEFAULTS INCLUDING IDENTITY,"
        "  PRIMARY KEY (id, timestamp)"
        ") PARTITION BY RANGE (timestamp)"
    )
    execute(
        "CREATE TABLE auditlog_old PARTITION OF starview_app_auditlog"
        " FOR VALUES FROM (MINVALUE) TO ('2024-10-10')"
    )
    execute(
        "CREATE TABLE auditlog_new PARTITION OF starview_app_auditlog"
        " FOR VALUES FROM ('2024-10-10') TO (MAXVALUE)"
    )
    yield
    execute("DROP TABLE starview_app_auditlog")
    execute("ALTER TABLE plain_auditlog RENAME TO starview_app_auditlog")


@pytest.mark.usefixtures("partitioned")
def test_a_partitioned_log_is_archived_and_comes_back(place: Folder) -> None:
    add_rows(OCTOBER)
    add_rows(OCTOBER.replace(day=20))
    before = rows_as_text()

    archive(place)
    assert rows_as_text() == []
    first, second = restore(place), restore(place)

    assert rows_as_text() == before
    assert (first.counts["restored"], second.counts["restored"]) == (4, 0)
    assert second.counts["skipped"] == 4


@pytest.mark.usefixtures("partitioned")
def test_in_a_partitioned_log_an_id_that_is_there_is_not_given_twice(
    place: Folder,
) -> None:
    (number,) = add_rows(count=1)
    archive(place)
    add_rows(OCTOBER.replace(day=20), count=1, id=number)
    before = rows_as_text()

    (problem,) = restore(place).problems

    assert "are in the table with other contents" in problem
    assert rows_as_text() == before


# -- what could not be seen, or could not come back, is refused first ----------------


def test_row_level_security_is_refused_before_a_row_is_hidden(place: Folder) -> None:
    add_rows()
    before = table_rows()

    with rows_hidden("starview_app_auditlog"), pytest.raises(JobError) as failure:
        archive(place)

    assert "row-level security may hide rows of starview_app_auditlog" in str(
        failure.value
    )
    assert "HINT: connect as the owner" in str(failure.value)
    assert (table_rows(), place.objects()) == (before, {})


def test_a_log_that_others_inherit_from_is_refused(place: Folder) -> None:
    add_rows()
    execute("CREATE TABLE more_log (extra text) INHERITS (starview_app_auditlog)")
    try:
        with pytest.raises(JobError, match="a table that others inherit from.*HINT"):
            archive(place)
    finally:
        execute("DROP TABLE more_log")
    assert place.objects() == {}


def test_a_known_column_that_is_gone_is_one_line(place: Folder) -> None:
    add_rows()
    execute("ALTER TABLE starview_app_auditlog RENAME user_agent TO agent")
    try:
        with pytest.raises(JobError, match="has no column user_agent: .*HINT"):
            archive(place)
    finally:
        execute("ALTER TABLE starview_app_auditlog RENAME agent TO user_agent")
    assert place.objects() == {}


@contextmanager
def retyped(name: str, kind: str, back: str) -> Iterator[None]:
    """A known column has another type, and no rows when that is undone."""
    table = "starview_app_auditlog"
    execute(f"ALTER TABLE {table} ALTER {name} TYPE {kind}")
    try:
        yield
    finally:
        execute(f"DELETE FROM {table}")
        execute(f"ALTER TABLE {table} ALTER {name} TYPE {back}")


@pytest.mark.parametrize(
    ("name", "kind", "back", "said"),
    [
        (
            "success",
            "integer USING success::integer",
            "boolean USING success::integer::boolean",
            "success as integer and not as boolean: ",
        ),
        (
            "timestamp",
            "timestamp(3)",
            "timestamptz",
            r"timestamp as timestamp\(3\) without time zone and not as timestamp with",
        ),
        (
            "metadata",
            "text",
            "jsonb USING metadata::jsonb",
            "metadata as text and not as jsonb or json: ",
        ),
    ],
)
def test_a_known_column_of_another_type_is_one_line(
    name: str, kind: str, back: str, said: str, place: Folder
) -> None:
    add_rows()
    with retyped(name, kind, back):
        before = rows_as_text()
        with pytest.raises(JobError, match=f"has the column {said}.*HINT: update"):
            archive(place)
        assert rows_as_text() == before
    assert place.objects() == {}


@pytest.mark.parametrize(
    ("name", "kind", "back"),
    [
        ("ip_address", "text USING host(ip_address)", "inet USING ip_address::inet"),
        ("ip_address", "cidr USING ip_address::cidr", "inet USING ip_address::inet"),
        ("metadata", "json", "jsonb"),
        ("timestamp", "timestamptz(3)", "timestamptz"),
        ("id", "integer", "bigint"),
    ],
)
def test_a_known_column_of_a_harmless_type_is_archived_and_comes_back(
    name: str, kind: str, back: str, place: Folder
) -> None:
    add_rows()
    with retyped(name, kind, back):
        before = rows_as_text()
        archive(place)
        assert rows_as_text() == []
        assert restore(place).problems == []
        assert rows_as_text() == before


def test_an_ip_address_that_may_be_any_text_is_quoted(place: Folder) -> None:
    add_rows(count=1)
    with retyped(
        "ip_address", "text USING host(ip_address)", "inet USING ip_address::inet"
    ):
        execute("UPDATE starview_app_auditlog SET ip_address = E'x\nid=9'")
        archive(place)
        assert r'ip="x\nid=9" message=' in archived(place, ".txt")


def test_a_row_too_long_to_be_restored_stays_in_the_table(
    place: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "LINE_BYTES", 10_000)
    (number,) = add_rows(count=1, message="x" * 20_000)
    before = table_rows()

    with pytest.raises(JobError) as failure:
        archive(place)

    assert f'{{"id":{number},' in str(failure.value)
    assert "more than the 10000 that can be restored" in str(failure.value)
    assert (table_rows(), place.objects()) == (before, {})


@contextmanager
def raising(operation: str, message: str) -> Iterator[None]:
    """A trigger of the web service's owner that does not let one row pass."""
    execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE 'not this one'; END $$"
    )
    row = "OLD" if operation == "DELETE" else "NEW"
    execute(
        f"CREATE TRIGGER refuse BEFORE {operation} ON starview_app_auditlog"
        f" FOR EACH ROW WHEN ({row}.message = '{message}') EXECUTE FUNCTION refuse()"
    )
    try:
        yield
    finally:
        execute("DROP FUNCTION refuse CASCADE")


@pytest.mark.parametrize("is_shared", [False, True])
def test_a_row_that_cannot_be_deleted_keeps_only_its_own_segment_back(
    is_shared: bool, place: Folder
) -> None:
    sharing = Sharing(lambda part, heard: None, lambda: place.store)
    add_rows(OCTOBER, count=2)
    (kept,) = add_rows(OCTOBER.replace(month=11), count=1, message="stays")
    add_rows(OCTOBER.replace(month=12), count=2)

    with raising("DELETE", "stays"), pytest.raises(JobError) as failure:
        archive(place, sharing=sharing if is_shared else None)

    assert str(failure.value) == (
        "4 audit logs are archived and the rest is still in the database, archiving"
        " failed: the database refused: not this one (in function"
        " refuse()) HINT: a trigger in the database refuses it; ask who"
        " made it"
    )
    assert set(table_rows()) == {kept}
    assert AuditManifest.objects.filter(is_written=True).count() == 1
    assert archive(place, now=NOW.replace(day=28)).counts["archived"] == 1
    assert_verified(place.store)


def test_when_all_is_refused_the_run_does_not_go_on_for_ever(place: Folder) -> None:
    months = [OCTOBER.replace(year=2010, month=1 + n) for n in range(12)]
    rows = [number for month in months for number in add_rows(month, message="stays")]

    with raising("DELETE", "stays"), pytest.raises(JobError) as failure:
        archive(place)

    assert "(and 9 more segments were refused)" in str(failure.value)
    assert set(table_rows()) == set(rows)


def test_a_row_that_cannot_be_inserted_keeps_only_its_own_object_back(
    place: Folder,
) -> None:
    add_rows(OCTOBER, count=1, message="refused")
    (kept,) = add_rows(OCTOBER.replace(month=11), count=1)
    archive(place)

    with raising("INSERT", "refused"):
        result = restore(place)

    (problem,) = result.problems
    assert "has a row that starview_app_auditlog does not take: not this one" in problem
    assert set(table_rows()) == {kept}


@pytest.mark.parametrize("model", [AuditArchive, AuditManifest])
def test_what_no_name_or_number_could_mend_is_not_tried_for_ever(
    model: type[AuditArchive | AuditManifest],
    place: Folder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table, tries, save = model._meta.db_table, [], model.save

    def counting(self: AuditArchive | AuditManifest, **options: Any) -> None:
        tries.append(self)
        assert len(tries) < 5
        save(self, **options)

    monkeypatch.setattr(model, "save", counting)
    add_rows(count=1)
    execute(f"ALTER TABLE {table} ADD added text NOT NULL")
    try:
        with pytest.raises(IntegrityError, match='null value in column "added"'):
            archive(place)
    finally:
        execute(f"ALTER TABLE {table} DROP added")


@contextmanager
def altering(table: str, how: str) -> Iterator[None]:
    execute(
        "CREATE FUNCTION alter_row() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.message := 'altered'; RETURN NEW; END $$"
    )
    execute(
        f"CREATE TRIGGER alter_row BEFORE INSERT ON {table}"
        " FOR EACH ROW WHEN (NEW.message = 'odd') EXECUTE FUNCTION alter_row()"
    )
    if how:
        execute(f"ALTER TABLE {table} {how} TRIGGER alter_row")
    try:
        yield
    finally:
        execute("DROP FUNCTION alter_row CASCADE")


ALTERED = (
    "1 rows of {name} did not come back as they were: a trigger on"
    " starview_app_auditlog alters them; nothing of it was restored HINT: disable it"
    " for the restore"
)


def test_rows_that_a_trigger_alters_do_not_count_as_restored(place: Folder) -> None:
    add_rows(OCTOBER, count=1, message="odd")
    (kept,) = add_rows(OCTOBER.replace(month=11), count=1)
    archive(place, formats=("json",))
    (name, _) = sorted(AuditArchive.objects.values_list("stem", flat=True))

    with altering("starview_app_auditlog", ""):
        result = restore(place)

    assert result.problems == [ALTERED.format(name=f"{name}.json")]
    assert result.counts["restored"] == 1
    assert set(table_rows()) == {kept}


def test_what_was_there_before_is_not_laid_to_a_trigger(place: Folder) -> None:
    add_rows(count=1)
    (changed,) = add_rows(count=1)
    archive(place)
    add_rows(count=1, id=changed, message="changed")

    with altering("starview_app_auditlog", ""):
        result = restore(place)

    (problem,) = result.problems
    assert "are in the table with other contents" in problem
    assert result.counts["restored"] == 1


def test_a_trigger_that_is_disabled_keeps_nothing_back(place: Folder) -> None:
    add_rows(message="odd")
    archive(place)
    with altering("starview_app_auditlog", "DISABLE"):
        assert restore(place).problems == []
    assert len(table_rows()) == 2


@pytest.mark.usefixtures("partitioned")
def test_a_trigger_of_one_partition_is_noticed_as_well(place: Folder) -> None:
    add_rows(OCTOBER, count=1, message="odd")
    archive(place)
    with altering("auditlog_old", ""):
        (problem,) = restore(place).problems
    assert "a trigger on starview_app_auditlog alters them" in problem


def test_a_rule_with_which_nothing_can_be_restored_is_one_line(place: Folder) -> None:
    add_rows(count=1, message="odd")
    archive(place)
    execute(
        "CREATE RULE alter_row AS ON INSERT TO starview_app_auditlog"
        " WHERE NEW.message = 'odd' DO ALSO"
        " UPDATE starview_app_auditlog SET message = 'altered' WHERE id = NEW.id"
    )
    try:
        with pytest.raises(JobError, match="has a rule ON INSERT .* HINT: drop"):
            restore(place)
    finally:
        execute("DROP RULE alter_row ON starview_app_auditlog")
    assert table_rows() == {}


# -- proof before use ----------------------------------------------------------------


def forge(place: Folder, text: bytes, *, rows: int) -> None:
    """A gzipped object of our own, that the database vouches for with its true hash."""
    add_rows(count=1)
    archive(place, compress=True, formats=("json",))
    record = AuditArchive.objects.get()
    (name,) = record.names
    body = gzip.compress(text)
    (place.folder / name).write_bytes(body)
    (entry,) = record.objects_written
    entry |= {
        "rows": rows,
        "size_bytes": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    record.objects_written = [entry]
    record.manifest = None
    record.save()
    for name in place.objects():
        if name.startswith("audit_manifest_"):
            (place.folder / name).unlink()
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM maintenance_auditmanifest")


def database_bytes() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_database_size(current_database())")
        (size,) = cursor.fetchone()
    return int(size)


BOMBS = {
    "many short lines": b"\n" * 20_000_000,
    "one long line": b'{"id":1,"message":"' + b"x" * 40_000_000 + b'"}\n',
    "many long lines": (b'{"id":1,"message":"' + b"x" * 1_000_000 + b'"}\n') * 50,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_object_that_unpacks_hugely_costs_the_database_nothing(
    bomb: str, place: Folder
) -> None:
    forge(place, BOMBS[bomb], rows=1)
    before = database_bytes()

    (problem,) = restore(place).problems

    assert "more than its 1 rows, or longer ones" in problem
    assert database_bytes() - before < 64 << 20
    assert table_rows() == {}


def test_an_object_of_another_size_is_not_read_further(
    place: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_rows(count=1)
    archive(place, formats=("json",))
    (name,) = AuditArchive.objects.get().names
    with (place.folder / name).open("ab") as file:
        file.truncate(500 << 20)
    read: list[int] = []
    whole = FolderStore.read

    def counting(self: FolderStore, name: str) -> Iterator[bytes]:
        for piece in whole(self, name):
            read.append(len(piece))
            yield piece

    monkeypatch.setattr(FolderStore, "read", counting)

    (problem,) = restore(place).problems

    assert "is not what was archived" in problem
    assert sum(read) < 8 << 20  # the manifest, and a piece
