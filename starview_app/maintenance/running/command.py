"""The base of every job's command: options in, a report out, one run between them."""

import sys
import uuid
from argparse import ArgumentTypeError
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, ClassVar

import structlog
from django.conf import settings
from django.core.management.base import (
    BaseCommand,
    CommandError,
    CommandParser,
    OutputWrapper,
)
from django.utils import timezone

from starview import __version__
from starview.env import ARCHIVE, plain_email_problem
from starview_app.maintenance import exits
from starview_app.maintenance.jobs.result import JobResult
from starview_app.maintenance.own_tables import create_own_tables
from starview_app.maintenance.running.lock import sessions_named
from starview_app.maintenance.running.process import is_supervised
from starview_app.maintenance.running.request import take_request
from starview_app.maintenance.running.stop import StopRequest
from starview_app.maintenance.running.watcher import fork_run
from starview_app.maintenance.running.worker import clear_errors, reporting_errors, work
from starview_app.maintenance.stores.configured import store_in_use
from starview_app.maintenance.text import one_line

# Beyond this no date can be reckoned with.
MAX_DAYS = 36_500
_IF_UNFINISHED = "; what was finished is kept, the next run does the rest"


class OneLineParser(CommandParser):
    """Wrong options are one line; `--help` shows the usage. Nothing is abbreviated.

    `--dry` must not pass for `--dry-run`: what decides on it compares whole words.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **kwargs})

    def print_usage(self, file: Any = None) -> None:
        pass


class OneLineCommand(BaseCommand):
    """A command with a OneLineParser, of this image's version."""

    def get_version(self) -> str:
        return f"starview-maintenance {__version__} (Django {super().get_version()})"

    def create_parser(
        self, prog_name: str, subcommand: str, **kwargs: Any
    ) -> CommandParser:
        # Django makes a CommandParser by that name, and no other.
        parser = super().create_parser(
            prog_name, subcommand, allow_abbrev=False, **kwargs
        )
        parser.print_usage = lambda file=None: None  # type: ignore[method-assign]
        return parser


class _Report(OutputWrapper):
    """stdout, and whether anything was printed there."""

    is_empty = True

    def write(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        self.is_empty = False
        super().write(*args, **kwargs)


class JobCommand(OneLineCommand):
    """A command that is one job: `add_options` declares, `run` makes the one call.

    Exit codes: 0 done, also when there was nothing to do; 1 failed or incomplete;
    2 wrong options; 75 another run of this job is under way.
    """

    # The job's one name: the module's, the command's and the lock's.
    job_name: ClassVar[str]
    # What the job uses besides the database, except in a dry run: see `starview.env`.
    needs: ClassVar[tuple[str, ...]] = ()
    # Jobs of one lock never run beside each other; by default each has its own.
    lock_name: ClassVar[str] = ""
    # Whether a dry run needs all that a run needs.
    needs_in_dry_run: ClassVar[bool] = False
    # Whether it uses the tables that this image owns.
    keeps_records: ClassVar[bool] = False
    # A job that only reads has nothing to try out.
    has_dry_run: ClassVar[bool] = True
    # How the one line of a run with problems begins.
    failure: ClassVar[str] = "is incomplete"
    # The entrypoint checks once; at each run it would cost more than the job itself.
    requires_system_checks = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "job_name" not in cls.__dict__:
            cls.job_name = cls.__module__.rpartition(".")[2]

    def add_options(self, parser: CommandParser) -> None:
        """Declare the job's own options."""

    def check_options(self, options: dict[str, Any]) -> str:
        """What is wrong with options taken together; empty when nothing is."""
        return ""

    def changes_nothing(self, options: dict[str, Any]) -> bool:
        """Whether a run with these options only looks: no slot, no lock, no record."""
        return bool(options.get("dry_run"))

    def is_shared(self, options: dict[str, Any]) -> bool:
        """Whether several runs with such options may work beside each other."""
        return False

    def run(self, *args: Any, **options: Any) -> JobResult:
        """Do the job and report on stdout; raise JobError for what people can fix.

        Gets `should_stop`, `dry_run` and the declared options as keywords. When it
        prints nothing, the counts of its result are printed.
        """
        raise NotImplementedError

    def add_arguments(self, parser: CommandParser) -> None:
        self.add_options(parser)
        if self.has_dry_run:
            parser.add_argument(
                "--dry-run",
                action="store_true",
                help="report what would be done and change nothing",
            )

    def run_from_argv(self, argv: list[str]) -> None:
        """Run as two processes: this one watches, and its fork does the work.

        Django's `call_command` goes straight to `execute`: a part of another run.
        """
        request = take_request(self.job_name, argv[2:], now=timezone.now())
        if not self._only_looks(argv, is_scheduled=request.schedule is not None):
            watcher = fork_run(request)
            if watcher:
                sys.exit(watcher.watch())
        super().run_from_argv(argv)

    def execute(self, *args: Any, **options: Any) -> str | None:
        with reporting_errors():
            return super().execute(*args, **options)

    def handle(self, *args: Any, dry_run: bool = False, **options: Any) -> None:
        if wrong := self.check_options(options):
            raise CommandError(wrong, returncode=exits.WRONG_OPTIONS)

        dry_run = self.changes_nothing({**options, "dry_run": dry_run})
        report = self.stdout = _Report(self.stdout._out)  # type: ignore[arg-type]

        def do(stop: StopRequest) -> JobResult:
            result = self.run(should_stop=stop, dry_run=dry_run, **options)
            if report.is_empty and result.counts:
                counts = (f"{name} {number}" for name, number in result.counts.items())
                report.write(", ".join(counts))
            return result

        with clear_errors(), structlog.contextvars.bound_contextvars(**self._names()):
            is_light = dry_run and not self.needs_in_dry_run
            settings.ENVIRONMENT.require(*([] if is_light else self.needs))
            if self.keeps_records and not dry_run:
                with sessions_named(self.job_name):
                    create_own_tables()
            result = work(
                self.job_name,
                do,
                lock_name=self.lock_name,
                is_locked=not dry_run,
                is_shared=self.is_shared(options),
                if_unfinished=_IF_UNFINISHED,
                log_fields={
                    "dry_run": dry_run,
                    **(store_in_use() if ARCHIVE in self.needs else {}),
                },
            )
        if result.problems:
            raise CommandError(self._summary(result.problems))

    # -- internal helpers ---------------------------------------------------------

    def _only_looks(self, argv: list[str], *, is_scheduled: bool) -> bool:
        """Whether it will change nothing; ends here for --help and wrong options.

        A line of the crontab with wrong options is a run, which fails and is recorded.
        """
        self._called_from_command_line = not is_scheduled
        parser = self.create_parser(argv[0], argv[1])
        try:
            options = vars(parser.parse_args(argv[2:]))
            if wrong := self.check_options(options):
                parser.error(wrong)
        except CommandError:
            return False
        return self.changes_nothing(options)

    def _summary(self, problems: list[str]) -> str:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return one_line(f"{self.job_name} {self.failure}: {problems[0]}{more}")

    def _names(self) -> dict[str, str]:
        """What every line of the log says; the watching process has bound its own."""
        if is_supervised():
            return {}
        return {"job": self.job_name, "run_id": uuid.uuid4().hex[:12]}


def whole_number(
    minimum: int, unit: str, maximum: int = MAX_DAYS
) -> Callable[[str], int]:
    """An argparse type: a whole number of `unit` from `minimum` to `maximum`."""

    def parse(text: str) -> int:
        if (
            not text.isascii()
            or not text.isdigit()
            or len(text.lstrip("0")) > len(str(maximum))  # more than `int` reads
            or not minimum <= int(text) <= maximum
        ):
            raise ArgumentTypeError(
                f"{text!r} is not a whole number of {unit} from {minimum} to {maximum}"
            )
        return int(text)

    return parse


def addresses(text: str) -> list[str]:
    """An argparse type: e-mail addresses, comma-separated.

    None at all is not refused here: the schedule passes on an unset ADMIN_EMAIL, and
    the clean-up shall be done before the run fails for it.
    """
    found = [address.strip() for address in text.split(",") if address.strip()]
    for address in found:
        if plain_email_problem(address):
            raise ArgumentTypeError(f"{address!r} is not an e-mail address")
    return list(dict.fromkeys(found))


def utc_day(text: str) -> datetime:
    """An argparse type: the begin of a day, written YYYY-MM-DD."""
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
        if not text.isascii() or not 1900 <= day.year < 9999:
            raise ValueError
        return day
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a date such as 2026-01-31") from None
