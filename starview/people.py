"""Removes names and addresses of accounts from texts.

Text for servers of others never has them. With REDACT_EMAILS=True no output, log,
record or mail has them. Only the standard library is imported, as in `redaction`.
"""

import os
import re
from functools import cache
from pathlib import Path

MASK = "***"

# Lines of the clean-up of accounts, as printed or quoted in an alert: the text between
# the two groups names an account.
_LINE_OF_AN_ACCOUNT = re.compile(
    r"^([ \t|]*(?:- |✓ |✗ )(?:(?:Not deleted|Deleted|Kept): )?)\S.*?"
    r"( - registered \d+ days ago|(?<=\)) \([a-z][^()@]*\)| \(changed meanwhile\)"
    r"|(?<=\))|: .*)$",
    re.MULTILINE,
)
# Lines and errors of the commands for badges, and the option that names a member.
_LINE_OF_A_MEMBER = re.compile(
    r"^([ \t|]*(?:👤 User: |Auditing user: |#[ ]*\d+ - ))\S.*?"
    r"( \(joined: \d{4}-\d\d-\d\d\) - .*)?$",
    re.MULTILINE,
)
_NAMED = re.compile(
    r"(?P<before>no user )'.*'(?= HINT|$)"
    r"|'[^\n]*'(?P<after> is a system account, which)"
    r"|(?P<option>--user[= ])(?:'[^']*'|\S+)",
    re.MULTILINE,
)
# A character of an address. A match begins only after another character, since
# otherwise it would be tried at each character of a long word.
_SIGN = r"""[^\s<>()\[\]"',;:|=]"""
_ADDRESS = re.compile(rf"""(?<!{_SIGN}){_SIGN}+@[^\s<>()\[\]"',;:|]+""")


def without_people(text: str) -> str:
    """Return `text` with MASK in place of names and addresses of accounts."""
    text = _LINE_OF_AN_ACCOUNT.sub(rf"\1{MASK}\2", text)
    text = _LINE_OF_A_MEMBER.sub(rf"\1{MASK}\2", text)
    text = _NAMED.sub(rf"\g<before>\g<option>{MASK}\g<after>", text)
    return _ADDRESS.sub(MASK, text)


@cache
def are_masked() -> bool:
    """Whether REDACT_EMAILS is true, by itself or in the file of REDACT_EMAILS_FILE."""
    value = os.environ.get("REDACT_EMAILS", "")
    path = os.environ.get("REDACT_EMAILS_FILE", "")
    if not value and path and Path(path).is_file():
        value = Path(path).read_text(encoding="utf-8", errors="replace")
    return value.strip().lower() == "true"


def masked_if_asked(text: str) -> str:
    return without_people(text) if are_masked() else text


def shown(name: str) -> str:
    """Return the name or address of an account in the form that may be printed."""
    return MASK if are_masked() else name
