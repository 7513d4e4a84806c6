"""The template filter `yaml_text`: any text of one line as a scalar of YAML."""

import re

from django.template import Library

register = Library()

# Nothing in it that YAML takes for more than text, and no word that it takes for less.
_PLAIN = re.compile(r'[A-Za-z][\w.=/-]*[ _-][\w $"{}=@%+,./-]*[\w"}]', re.ASCII)


@register.filter
def yaml_text(text: str) -> str:
    """`text` as it stands where that is plain enough, else in single quotes."""
    if _PLAIN.fullmatch(text):
        return text
    return "'{}'".format(text.replace("'", "''"))
