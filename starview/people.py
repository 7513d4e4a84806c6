"""Names and addresses of accounts, for whoever must not see them.

What goes to somebody else's server never has them. With REDACT_EMAILS=True nothing
has: no output, log, record or mail. Only the standard library is imported, as in
`redaction`.
"""

import os
import re
from functools import cache
from pathlib import Path

MASK = "***"

# Lines of the clean-up of accounts, as printed or quoted in an alert: what stands
# between the two groups names one.
_LINE_OF_AN_ACCOUNT = re.compile(
    r"^([ \t|]*(?:- |✓ |✗ )(?:(?:Not deleted|Deleted|Kept): )?)\S.*?"
    r"( - registered \d+ days ago|(?<=\)) \([a-z][^()@]*\)| \(changed meanwhile\)"
    r"|(?<=\))|: .*)$",
    re.MULTILINE,
)
# It begins behind one of these signs: else each sign of a long word would be a begin.
_SIGN = r"""[^\s<>()\[\]"',;:|=]"""
_ADDRESS = re.compile(rf"""(?<!{_SIGN}){_SIGN}+@[^\s<>()\[\]"',;:|]+""")


def without_people(text: str) -> str:
    """`text` with MASK for the names and addresses of accounts."""
    text = _LINE_OF_AN_ACCOUNT.sub(rf"\1{MASK}\2", text)
    return _ADDRESS.sub(MASK, text)


@cache
def are_masked() -> bool:
    """Whether REDACT_EMAILS, or the file that REDACT_EMAILS_FILE names, says so."""
    value = os.environ.get("REDACT_EMAILS", "")
    path = os.environ.get("REDACT_EMAILS_FILE", "")
    if not value and path and Path(path).is_file():
        value = Path(path).read_text(encoding="utf-8", errors="replace")
    return value.strip().lower() == "true"


def masked_if_asked(text: str) -> str:
    return without_people(text) if are_masked() else text


def shown(name: str) -> str:
    """The name or address of an account, as it may be printed."""
    return MASK if are_masked() else name
