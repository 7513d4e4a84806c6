"""The template filter `yaml_text`, which writes one line of text as a YAML scalar."""

import re

from django.template import Library

register = Library()

# Text that YAML reads as a string without quotes: no syntax, no number, no `true`.
_PLAIN = re.compile(r'[A-Za-z][\w.=/-]*[ _-][\w $"{}=@%+,./-]*[\w"}]', re.ASCII)


@register.filter
def yaml_text(text: str) -> str:
    """Return `text` unchanged if YAML reads it as a string, else in single quotes."""
    if _PLAIN.fullmatch(text):
        return text
    return "'{}'".format(text.replace("'", "''"))
