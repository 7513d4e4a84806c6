"""`award_pioneer_badges`: awards the Pioneer badge to the first members."""

from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from starview.people import shown
from starview_app.maintenance.jobs.badges import pioneers as job
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.running.command import JobCommand
from starview_app.maintenance.text import one_line


class Command(JobCommand):
    help = (
        f"Awards the Pioneer badge to the first {job.PIONEERS} members: active, with a"
        " verified address or a social account, in the order of joining. Revokes none:"
        f" whoever holds it takes a place, and never more than {job.PIONEERS} hold it."
        " For once, by hand, not for a schedule; can be run again."
    )

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--force",
            action="store_true",
            help="look again at those who hold the badge, too: every run does",
        )

    def run(
        self, *, should_stop: ShouldStop, dry_run: bool, **options: Any
    ) -> JobResult:
        self._receives = "would receive" if dry_run else "AWARDED"
        self._left_out = 0
        self.stdout.write(f"The first {job.PIONEERS} verified members:\n\n")
        result = job.award_pioneer_badges(
            now=timezone.now(),
            report=self._print,
            should_stop=should_stop,
            dry_run=dry_run,
        )
        if not result.interrupted:
            self._finish(result.counts, dry_run=dry_run)
        return result

    def _print(self, member: job.Member) -> None:
        self._left_out += member.standing is job.Standing.NO_PLACE_LEFT
        outcome = {
            job.Standing.HOLDS: "already has",
            job.Standing.RECEIVES: self._receives,
            job.Standing.NO_PLACE_LEFT: "no place left",
        }[member.standing]
        self.stdout.write(
            f"  #{member.rank:>3} - {one_line(shown(member.username))}"
            f" (joined: {member.joined:%Y-%m-%d}) - {outcome}"
        )

    def _finish(self, counts: dict[str, int], *, dry_run: bool) -> None:
        write = self.stdout.write
        members, held = counts["members"], counts["held"]
        received = members - held - self._left_out
        write(f"\nAlready had it: {held}")
        write(f"{'Would receive it' if dry_run else 'Awarded'}: {received}")
        if self._left_out:
            write(f"Without a place: {self._left_out}, as others hold it")
        holders = counts["holders"] + (received if dry_run else 0)
        write(f"Holders in all: {holders} of {job.PIONEERS}")
        if dry_run:
            write("\nDry run: nothing changed")
