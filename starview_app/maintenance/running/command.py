"""The base class of the jobs' commands: it parses options and runs the job once."""

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

# 100 years: more makes no sense, and far more would overflow a date.
MAX_DAYS = 36_500
_IF_UNFINISHED = "; what was finished is kept, the next run does the rest"


class OneLineParser(CommandParser):
    """Reports wrong options in one line, without the usage; accepts no abbreviations.

    `--dry` must not mean `--dry-run`: other code looks for the whole word.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **kwargs})

    def print_usage(self, file: Any = None) -> None:
        pass


class OneLineCommand(BaseCommand):
    """A command with a OneLineParser, whose `--version` is that of this image."""

    def get_version(self) -> str:
        return f"starview-maintenance {__version__} (Django {super().get_version()})"

    def create_parser(
        self, prog_name: str, subcommand: str, **kwargs: Any
    ) -> CommandParser:
        # Django's `create_parser` instantiates the module's `CommandParser`; it has no
        # argument for another class.
        parser = super().create_parser(
            prog_name, subcommand, allow_abbrev=False, **kwargs
        )
        parser.print_usage = lambda file=None: None  # type: ignore[method-assign]
        return parser


class _Report(OutputWrapper):
    """stdout, which remembers whether anything was printed."""

    is_empty = True

    def write(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        self.is_empty = False
        super().write(*args, **kwargs)


class JobCommand(OneLineCommand):
    """A command for one job: `add_options` declares its options, `run` calls the job.

    Exit codes: 0 done, also when there was nothing to do; 1 failed or incomplete;
    2 wrong options; 75 another run of this job is under way.
    """

    # The job's name; its module, its command and its lock have the same.
    job_name: ClassVar[str]
    # The services that the job needs besides the database, by the names of
    # `starview.env`. They are checked before a run, but not before a dry run.
    needs: ClassVar[tuple[str, ...]] = ()
    # Jobs with the same lock name never run at the same time. Empty: a lock of its own.
    lock_name: ClassVar[str] = ""
    # Whether a dry run needs the same services as a run.
    needs_in_dry_run: ClassVar[bool] = False
    # Whether the job uses the tables that this image owns.
    keeps_records: ClassVar[bool] = False
    # False for a job that only reads: a dry run would be the same.
    has_dry_run: ClassVar[bool] = True
    # What follows the job's name in the error of a run with problems.
    failure: ClassVar[str] = "is incomplete"
    # The entrypoint runs the checks once; in each run they would take longer than the
    # job itself.
    requires_system_checks = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "job_name" not in cls.__dict__:
            cls.job_name = cls.__module__.rpartition(".")[2]

    def add_options(self, parser: CommandParser) -> None:
        """Declare the job's own options."""

    def check_options(self, options: dict[str, Any]) -> str:
        """Return what is wrong with the combination of options, or an empty string."""
        return ""

    def changes_nothing(self, options: dict[str, Any]) -> bool:
        """Whether these options only read: such a run has no slot, lock or record."""
        return bool(options.get("dry_run"))

    def is_shared(self, options: dict[str, Any]) -> bool:
        """Whether several runs with such options may work at the same time."""
        return False

    def run(self, *args: Any, **options: Any) -> JobResult:
        """Do the job and print its report; raise JobError for what an operator can fix.

        The keywords are `should_stop`, `dry_run` and the declared options. If nothing
        is printed, the counts of the result are.
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

        Django's `call_command` skips this: such a call is part of the run that makes
        it.
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
        """Whether these arguments change nothing; exits for --help and wrong options.

        A scheduled run with wrong options does not exit here, but fails and is
        recorded.
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
        """The fields of every log line; in a run the watching process has set them."""
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
            or len(text.lstrip("0")) > len(str(maximum))  # `int` has a limit of digits
            or not minimum <= int(text) <= maximum
        ):
            raise ArgumentTypeError(
                f"{text!r} is not a whole number of {unit} from {minimum} to {maximum}"
            )
        return int(text)

    return parse


def addresses(text: str) -> list[str]:
    """An argparse type: e-mail addresses, comma-separated.

    An empty list is accepted: the crontab passes ADMIN_EMAIL, which may be unset, and
    the clean-up must be done before the run fails for that reason.
    """
    found = [address.strip() for address in text.split(",") if address.strip()]
    for address in found:
        if plain_email_problem(address):
            raise ArgumentTypeError(f"{address!r} is not an e-mail address")
    return list(dict.fromkeys(found))


def utc_day(text: str) -> datetime:
    """An argparse type: a day, written YYYY-MM-DD, as its first moment in UTC."""
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
        if not text.isascii() or not 1900 <= day.year < 9999:
            raise ValueError
        return day
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a date such as 2026-01-31") from None
