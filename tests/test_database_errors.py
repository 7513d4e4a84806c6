"""What a database error says to an operator: the fault, and nothing of the rows."""

import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from django.db import DataError, Error, IntegrityError, OperationalError, connection

from starview_app.maintenance.database_errors import explain, message_of
from starview_app.maintenance.running.worker import clear_errors, reporting_errors
from tests.factories import execute

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def _table() -> Iterator[None]:
    execute("CREATE TABLE kept (name text CHECK (name <> 'zoé'), note text NOT NULL)")
    yield
    execute("DROP TABLE kept")


def failing(statement: str, kind: type[Error]) -> Error:
    with pytest.raises(kind) as failure, connection.cursor() as cursor:
        cursor.execute(statement)
    error: Error = failure.value
    return error


@pytest.mark.usefixtures("_table")
def test_the_message_has_no_contents_of_the_row() -> None:
    error = failing("INSERT INTO kept VALUES ('somebody', NULL)", IntegrityError)

    assert message_of(error) == (
        'null value in column "note" of relation "kept" violates not-null constraint'
    )


def test_a_value_that_does_not_fit_is_not_quoted() -> None:
    error = failing("""SELECT '{"a": "somebody"'::json""", DataError)
    assert message_of(error) == "invalid input syntax for type json"
    error = failing("SELECT 'some\"body'::inet", DataError)
    assert message_of(error) == 'invalid input syntax for type inet: "..."'


def test_the_wrong_value_of_a_setting_is_quoted() -> None:
    error = failing("SET TimeZone = 'nowhere'", DataError)
    assert message_of(error) == 'invalid value for parameter "TimeZone": "nowhere"'


def test_what_the_server_advises_is_kept() -> None:
    error = failing("SELECT nowhere()", Error)
    assert message_of(error).startswith(
        "function nowhere() does not exist HINT: No function matches"
    )


def test_a_functions_name_is_told_and_not_what_it_was_doing() -> None:
    error = failing(
        "DO $do$ BEGIN CREATE FUNCTION pg_temp.refuse(text) RETURNS void LANGUAGE"
        " plpgsql AS $$ BEGIN RAISE 'not this one'; END $$;"
        " EXECUTE 'SELECT pg_temp.refuse(''somebody'')'; END $do$",
        Error,
    )

    text = explain(error) or ""

    assert text.startswith("not this one (in function ")
    assert "refuse(text)) HINT: a trigger in the database refuses it" in text
    assert "somebody" not in text


@pytest.mark.usefixtures("_table")
@pytest.mark.parametrize("passing_on", [clear_errors, reporting_errors])
def test_the_traceback_of_a_bug_has_no_contents_of_the_row(
    passing_on: Callable[[], AbstractContextManager[None]],
) -> None:
    with pytest.raises(IntegrityError) as failure, passing_on():
        raise failing("INSERT INTO kept VALUES ('somebody', NULL)", IntegrityError)

    shown = "".join(traceback.format_exception(failure.value))
    assert "violates not-null constraint" in shown
    assert "psycopg2.errors.NotNullViolation" in shown
    assert "Failing row contains" not in shown


def test_an_error_before_a_session_begins_is_told_whole() -> None:
    error = OperationalError("connection refused\n\tIs the server running?")
    assert message_of(error) == "connection refused Is the server running?"
