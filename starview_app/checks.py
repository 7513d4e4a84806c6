"""A system check: `check --deploy` names every missing or wrong variable of any job."""

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register


@register(deploy=True)
def check_environment(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[CheckMessage]:
    """Return one error for each variable; a command requires only those it uses."""
    return [
        Error(
            f"{problem.what} (for {problem.needed_by})",
            hint=problem.where,
            id="starview.E001",
        )
        for problem in settings.ENVIRONMENT.problems
    ]
