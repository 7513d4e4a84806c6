"""`audit_badges`: prints the audit of the badges; two options correct them."""

from collections import Counter
from collections.abc import Callable, Iterator
from decimal import ROUND_DOWN, Decimal
from typing import Any

from django.core.management.base import CommandParser
from django.utils import timezone

from starview.people import shown
from starview_app.maintenance.jobs.badges import audit as job
from starview_app.maintenance.jobs.badges.rules import Finding
from starview_app.maintenance.jobs.result import JobResult, ShouldStop
from starview_app.maintenance.running.command import JobCommand
from starview_app.maintenance.text import one_line

_RULE = "=" * 70


class Command(JobCommand):
    # Without --fix and --award it is a preview.
    has_dry_run = False
    help = (
        "Compares the badges of all users with the rules. Without --fix or --award it"
        " only reports, and writes nothing. Pioneer and its like are never revoked and"
        " never awarded here; only active accounts with a verified address or a social"
        " account are awarded any. By hand, for example after bulk deletions, not for a"
        " schedule."
    )

    def add_options(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--fix", action="store_true", help="revoke badges that are not earned"
        )
        parser.add_argument(
            "--award", action="store_true", help="award badges that are earned"
        )
        parser.add_argument(
            "--user", metavar="NAME", help="look at this user only, by user name"
        )

    def changes_nothing(self, options: dict[str, Any]) -> bool:
        return not (options["fix"] or options["award"])

    def run(
        self,
        *,
        should_stop: ShouldStop,
        fix: bool,
        award: bool,
        user: str | None,
        **options: Any,
    ) -> JobResult:
        printer = _Printer(self.stdout.write, fix=fix, award=award, user=user)
        result = job.audit_badges(
            now=timezone.now(),
            report=printer,
            should_stop=should_stop,
            username=user,
            fix=fix,
            award=award,
        )
        printer.finish(result)
        return result


class _Printer:
    """Prints the job's events in the words of the web service's own audit."""

    def __init__(
        self, write: Callable[[str], None], *, fix: bool, award: bool, user: str | None
    ) -> None:
        self._write = write
        self._fix = fix
        self._award = award
        self._user = user
        self._users_with = {"invalid": 0, "missing": 0}
        self._by_category: dict[str, Counter[str]] = {
            "invalid": Counter(),
            "missing": Counter(),
        }

    def __call__(self, event: job.Event) -> None:
        match event:
            case job.Begun(users, badges_without_rule):
                self._title("BADGE AUDIT REPORT")
                self._begin(users)
                for name, category in badges_without_rule:
                    self._write(
                        f"Not audited, its rule is not known here: {one_line(name)}"
                        f" ({one_line(category)})"
                    )
            case job.Audited(username, invalid, missing):
                revoked = "✓ REVOKED" if self._fix else "⚠ WOULD REVOKE"
                awarded = "✓ AWARDED" if self._award else "⚠ WOULD AWARD"
                lines = (
                    f"\n👤 User: {one_line(shown(username))}",
                    *self._findings("invalid", "badges found", revoked, invalid),
                    *self._findings("missing", "badges", awarded, missing),
                )
                # In one write, since each write is searched for secrets.
                self._write("\n".join(lines))

    def finish(self, result: JobResult) -> None:
        counts, write = result.counts, self._write
        write("")
        self._title("AUDIT SUMMARY")
        write(f"Users checked: {counts['users']}")
        for kind in ("invalid", "missing"):
            write(f"Users with {kind} badges: {self._users_with[kind]}")
            write(f"Total {kind} badges: {counts[kind]}")
        for kind, by_category in self._by_category.items():
            if by_category:
                write(f"\n{kind.capitalize()} badges by category:")
            for category, count in sorted(by_category.items()):
                write(f"  {one_line(category)}: {count}")
        write("")
        self._last_words(result)

    # -- internal helpers ---------------------------------------------------------

    def _title(self, text: str) -> None:
        self._write(f"{_RULE}\n{text}\n{_RULE}")

    def _begin(self, users: int) -> None:
        write = self._write
        write("")
        if self._fix:
            write("⚠️  FIX MODE: Invalid badges WILL be revoked")
        if self._award:
            write("⚠️  AWARD MODE: Missing badges WILL be awarded")
        if not (self._fix or self._award):
            write("📋 PREVIEW MODE: No changes will be made")
        if self._user is None:
            write(f"\nAuditing all users ({users} total, excluding system users)")
        else:
            write(f"\nAuditing user: {one_line(shown(self._user))}")

    def _findings(
        self, kind: str, noun: str, verb: str, findings: list[Finding]
    ) -> Iterator[str]:
        if not findings:
            return
        self._users_with[kind] += 1
        yield f"   {kind.capitalize()} {noun}: {len(findings)}"
        for each in findings:
            self._by_category[kind][each.category] += 1
            yield f"   {verb}: {one_line(each.badge)} ({one_line(each.category)})"
            yield f"      Reason: {_reason(each)}"

    def _last_words(self, result: JobResult) -> None:
        counts, write = result.counts, self._write
        if not (counts["invalid"] or counts["missing"] or result.problems):
            if not result.interrupted:
                write("✓ All badges are valid and complete! No issues found.")
            return
        if self._fix:
            write(f"✓ Revoked {counts['revoked']} invalid badge(s)")
        elif counts["invalid"]:
            write(f"⚠️  Run with --fix to revoke {counts['invalid']} invalid badge(s)")
        if self._award:
            write(f"✓ Awarded {counts['awarded']} missing badge(s)")
        elif counts["missing"]:
            write(f"⚠️  Run with --award to award {counts['missing']} missing badge(s)")


def _reason(finding: Finding) -> str:
    if finding.needs_percent is None:
        return f"Has {finding.amount} {finding.measure}, needs {finding.needs}"
    # Rounded down: a number just below the limit must not look as if it reached it.
    percent = Decimal(finding.percent).quantize(Decimal("0.1"), ROUND_DOWN)
    return (
        f"Has {finding.amount} reviews with {percent}% upvotes, needs {finding.needs}"
        f" with {finding.needs_percent}%"
    )
