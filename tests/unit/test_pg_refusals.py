"""What is advised when PostgreSQL refuses a connection or ends it, by its words alone."""

from __future__ import annotations

import psycopg
import pytest

from splitmirror.databases._pg_session import unreachable


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        ("FATAL:  the database system is starting up", "starting, stopping or recovering"),
        ("FATAL:  the database system is not yet accepting connections", "recovering"),
        ("FATAL:  sorry, too many clients already", "max_connections"),
        ("FATAL:  remaining connection slots are reserved for roles", "max_connections"),
        ("could not translate host name 'db':  Name or service not known", "host and port"),
        ('FATAL:  Passwort-Authentifizierung für Benutzer "x" fehlgeschlagen', "psql"),
    ],
)
def test_by_its_words_and_in_another_language_by_all_that_it_may_be(
    words: str, advice: str
) -> None:
    said = f'connection failed: connection to server on socket "/run/x" failed: {words}'
    found = unreachable(psycopg.OperationalError(said))
    assert words.split(":  ")[1] in str(found)
    assert "cannot be reached: connection to server" in str(found)
    assert advice in found.hint


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (psycopg.errors.AdminShutdown("Verbindung wird abgebrochen"), "was ended"),
        (psycopg.errors.QueryCanceled("Anweisung wird abgebrochen"), "in time"),
        (psycopg.errors.CannotConnectNow("startet"), "starting"),
    ],
)
def test_within_a_session_by_its_code_whatever_its_language(
    error: psycopg.Error, advice: str
) -> None:
    assert advice in unreachable(error).hint
