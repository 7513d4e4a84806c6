"""Makes text from outside safe to show on one line."""

import re

# Unicode's categories Cc, Cf, Zl and Zp: controls, line and paragraph separators,
# direction overrides, invisible characters and tags. (first, last), both inclusive.
UNPRINTABLE_RANGES = (
    (0x0000, 0x001F),
    (0x007F, 0x009F),
    (0x00AD, 0x00AD),
    (0x0600, 0x0605),
    (0x061C, 0x061C),
    (0x06DD, 0x06DD),
    (0x070F, 0x070F),
    (0x0890, 0x0891),
    (0x08E2, 0x08E2),
    (0x180E, 0x180E),
    (0x200B, 0x200F),
    (0x2028, 0x202E),
    (0x2060, 0x206F),
    (0xFEFF, 0xFEFF),
    (0xFFF9, 0xFFFB),
    (0x110BD, 0x110BD),
    (0x110CD, 0x110CD),
    (0x13430, 0x1345F),
    (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A),
    (0xE0001, 0xE007F),
)


def _escape(code: int) -> str:
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


# Lone surrogates, from file names that are not UTF-8 or from JSON's escapes.
_SURROGATES = (0xD800, 0xDFFF)
_ESCAPES = {
    code: _escape(code)
    for first, last in (*UNPRINTABLE_RANGES, _SURROGATES)
    for code in range(first, last + 1)
}


def one_line(text: object) -> str:
    r"""Return `text` with unprintable characters shown as \uXXXX or \UXXXXXXXX.

    So a user name cannot forge a second line of a report or hide a part of a line.
    """
    text = str(text)
    # A quick check first: what Python calls printable needs no escapes.
    return text if text.isprintable() else text.translate(_ESCAPES)


def printable(text: str) -> str:
    """Return `text` with each of its lines as by `one_line`."""
    return "\n".join(map(one_line, text.split("\n")))


def end_of(text: str, longest: int) -> str:
    """Return the last `longest` characters, without the line that is cut by that.

    Names are masked by the form of their whole line. Of one endless line the end is
    returned.
    """
    if len(text) <= longest:
        return text
    end = text[-longest:]
    return end.partition("\n")[2] or end


def slug_of(job: str, longest: int) -> str:
    """Return the job's name as monitors accept it: lower case, digits, - and _."""
    return re.sub(r"[^a-z0-9_-]+", "-", job.lower())[:longest]
