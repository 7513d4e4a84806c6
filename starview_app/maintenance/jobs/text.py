"""Text from outside, made safe to show on one line."""

# C0 and C1 controls, and what moves or splits text: line and paragraph separators,
# direction marks and overrides, zero-width characters.
UNPRINTABLE = (
    *range(0x00, 0x20),
    *range(0x7F, 0xA0),
    0x00AD,
    0x061C,
    *range(0x200B, 0x2010),
    *range(0x2028, 0x202F),
    *range(0x2060, 0x2070),
    0xFEFF,
)
_ESCAPES = {code: f"\\u{code:04x}" for code in UNPRINTABLE}


def one_line(text: object) -> str:
    r"""`text` with control, separator and direction characters shown as \uXXXX.

    So a user name cannot forge a second line of a report or hide a part of one.
    """
    return str(text).translate(_ESCAPES)
