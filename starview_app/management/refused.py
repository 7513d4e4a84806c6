"""Django's commands that would empty tables of the web service."""

from typing import Any

from django.core.management.base import CommandError

from starview_app.maintenance.running.command import OneLineCommand


class RefusedCommand(OneLineCommand):
    """Refuses whoever types it, also through `run_job`; tests use `call_command`."""

    reason = ""

    def execute(self, *args: Any, **options: Any) -> str | None:
        if vars(self).get("_called_from_command_line"):  # Django's `run_from_argv`
            raise CommandError(f"refused: {self.reason}")
        return super().execute(*args, **options)
