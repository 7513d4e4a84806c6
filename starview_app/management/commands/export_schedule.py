"""`export_schedule`: prints the crontab as files for Render, Kubernetes or systemd."""

from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import CommandError, CommandParser

from starview_app.maintenance.files import write_file
from starview_app.maintenance.running.command import OneLineCommand
from starview_app.maintenance.schedule.crontab import read_text
from starview_app.maintenance.schedule.export.lines import ExportError
from starview_app.maintenance.schedule.export.platforms import PLATFORMS, as_one_text
from starview_app.maintenance.text import one_line


class Command(OneLineCommand):
    help = (
        "Writes the crontab's jobs in the form of another platform. Without --output it"
        " prints them as one text. Needs no database and no variables."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "platform",
            choices=PLATFORMS,
            help="render-worker: a Blueprint of one worker; render-cron: one of cron"
            " jobs; kubernetes: CronJobs, for kustomize; systemd: timers and services",
        )
        parser.add_argument(
            "--crontab",
            metavar="FILE",
            type=Path,
            default=settings.CRONTAB,
            help="by default the image's crontab",
        )
        parser.add_argument(
            "--output",
            metavar="DIR",
            type=Path,
            help="write files into this folder, which is made; others in it stay",
        )

    def handle(
        self, *, platform: str, crontab: Path, output: Path | None, **options: Any
    ) -> None:
        try:
            files = PLATFORMS[platform].files(read_text(crontab))
        except OSError as error:
            raise CommandError(one_line(f"cannot read {crontab}: {error}")) from error
        except ExportError as error:
            text = f"{error} HINT: {error.fix}"
            raise CommandError(one_line(text)) from error
        if output is None:
            self.stdout.write(as_one_text(files), ending="")
            return
        path = output
        try:
            output.mkdir(parents=True, exist_ok=True)
            for name, text in files.items():
                path = output / name
                write_file(path, text)
        except OSError as error:
            raise CommandError(one_line(f"cannot write {path}: {error}")) from error
        count = len(files)
        self.stdout.write(f"{count} file{'' if count == 1 else 's'} in {output}")
