"""`manage.py check --deploy` names every missing or wrong variable of every job."""

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register


@register(deploy=True)
def check_environment(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[CheckMessage]:
    """One error per variable; a one-off command asks only for what it uses."""
    return [
        Error(
            f"{problem.what} (for {problem.needed_by})",
            hint=problem.where,
            id="starview.E001",
        )
        for problem in settings.ENVIRONMENT.problems
    ]
