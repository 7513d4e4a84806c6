"""The base of Django's commands that are refused, since they would delete data."""

from typing import Any

from django.core.management.base import CommandError

from starview_app.maintenance.running.command import OneLineCommand


class RefusedCommand(OneLineCommand):
    """A command that fails if it is typed, also through `run_job`.

    Tests can use it by `call_command`.
    """

    reason = ""

    def execute(self, *args: Any, **options: Any) -> str | None:
        if vars(self).get("_called_from_command_line"):  # Django's `run_from_argv`
            raise CommandError(f"refused: {self.reason}")
        return super().execute(*args, **options)
