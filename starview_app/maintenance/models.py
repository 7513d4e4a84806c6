"""This image's own tables, `maintenance_*`, in the database of the web service.

No foreign key refers to a table of the web service, so that the migrations of the two
are independent.
"""

import uuid
from datetime import timedelta

from django.db import models


class AuditManifest(models.Model):
    """One manifest of the chain that proves the archives of a store to be complete.

    Its text is recorded in the commit that gives it its number, before it is written to
    the store: so a run that is killed leaves neither a gap nor a number used twice.
    """

    # The store, as `Store.location`. Each store has its own chain.
    location = models.CharField(max_length=1000)
    sequence = models.PositiveIntegerField()  # 1, 2, 3, ...
    name = models.CharField(max_length=255)
    body = models.TextField()
    sha256 = models.CharField(max_length=64)
    # The object is in the store, and was read back and compared.
    is_written = models.BooleanField(default=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["location", "sequence"], name="manifest_sequence_once"
            )
        ]


class AuditArchive(models.Model):
    """One segment of the audit log, which was or is being moved to a store.

    No state is entered twice:

        open ──► archived ──► removing ──► removed
          └────► abandoned

    `open` is committed before the first object is written. `archived` is committed
    together with the deletion of the rows and nothing else: while a segment is open its
    rows are in the table, afterwards they are in its objects. `abandoned` is committed,
    by any run, before an object of the segment is removed; then its rows can only be
    archived with another record. `removing` is committed before the first object of an
    archived segment is removed.

    Records are never deleted, so that the names of a record's objects are never reused.
    """

    class State(models.TextChoices):
        OPEN = "open"
        ARCHIVED = "archived"
        ABANDONED = "abandoned"
        REMOVING = "removing"
        REMOVED = "removed"

    location = models.CharField(max_length=1000)
    # The begin of the names of its objects: a name belongs to one record for ever.
    stem = models.CharField(max_length=255)
    state = models.CharField(max_length=10, choices=State.choices, default=State.OPEN)
    # The time of the run that opened it; the objects have it too, as their mark.
    archived_at = models.DateTimeField()
    retention_days = models.PositiveIntegerField()
    # The segment's ends in the order (timestamp, id), both inclusive.
    first_timestamp = models.DateTimeField()
    first_id = models.BigIntegerField()
    last_timestamp = models.DateTimeField()
    last_id = models.BigIntegerField()
    # The names of its objects, in the order of writing.
    names = models.JSONField()
    row_count = models.PositiveBigIntegerField(default=0)
    # The objects as in the manifest; empty until archived.
    objects_written = models.JSONField(default=list)
    # None until a manifest lists the segment.
    manifest = models.ForeignKey(AuditManifest, on_delete=models.PROTECT, null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["location", "stem"], name="archive_stem_once"
            )
        ]


class Backup(models.Model):
    """One backup of the database, which was or is being written to a store.

    No state is entered twice:

        open ──► good ──► removing ──► removed
          │        └────► lost
          └────► abandoned

    `open` is committed before the first byte is written. `good` is committed after the
    object was read back and compared, and `pg_restore` could list it; no other state
    counts as a backup. `abandoned` is committed before the objects of an open backup
    are removed, `removing` before those of a good one. `lost`: the objects of a good
    backup were missing in the store.

    Records are never deleted, so that the names of a record's objects are never reused.
    Backups do not contain this table, so that a restored copy of the database does not
    remove the objects.
    """

    class State(models.TextChoices):
        OPEN = "open"
        GOOD = "good"
        ABANDONED = "abandoned"
        LOST = "lost"
        REMOVING = "removing"
        REMOVED = "removed"

    location = models.CharField(max_length=1000)
    # The name of the dump; that of its description has `.json` added.
    name = models.CharField(max_length=255)
    state = models.CharField(max_length=10, choices=State.choices, default=State.OPEN)
    started_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True)  # when the backup became good
    # When a drill last restored the backup and found it complete.
    proved_at = models.DateTimeField(null=True)
    server_version = models.CharField(max_length=50)
    is_encrypted = models.BooleanField()
    # Size and hash of the object as stored.
    size_bytes = models.PositiveBigIntegerField(default=0)
    sha256 = models.CharField(max_length=64, default="")
    # The contents of the database in the dump's snapshot: see `contents.Contents`.
    contents = models.JSONField(default=dict)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["location", "name"], name="backup_name_once"
            )
        ]


class ScheduleLine(models.Model):
    """A line of the crontab, as the ticks of catch-up have seen it.

    Only `catchup.memory` writes this table. A job with changed times has two lines for
    a while, since during a deploy two crontabs are in use.
    """

    job = models.CharField(max_length=200)
    times = models.TextField()  # five fields
    # Earlier slots are not missed: the job was not scheduled then, or at other times.
    first_seen_at = models.DateTimeField()
    # The time of the last tick, whether or not its crontab had this line.
    seen_at = models.DateTimeField()
    # How long the line has been missing in the crontab of the ticks.
    absent = models.DurationField(default=timedelta(0))

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["job", "times"], name="scheduleline_once")
        ]


class Job(models.Model):
    """The settings of a job that people have made: its pause."""

    name = models.CharField(max_length=200, primary_key=True)
    # The newest pause: slots in it are not run; its end is exclusive.
    paused_at = models.DateTimeField(null=True)
    paused_until = models.DateTimeField(null=True)


class Announcement(models.Model):
    """The last alert about a job that a channel has accepted.

    Only `notify.alerts` writes this table, to announce to each channel what is new to
    it.
    """

    channel = models.CharField(max_length=50)
    job = models.CharField(max_length=200)
    announced_at = models.DateTimeField()
    # The newest slot that the alert was about.
    announced_slot = models.DateTimeField()
    # When the failures began that were announced; None: the job works.
    failing_since = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["channel", "job"], name="announcement_once")
        ]


class SentReport(models.Model):
    """A report that was mailed, once for each period and the same recipients.

    The row is inserted in the transaction in which the mail is sent. `figures` are
    those of the mail, {group: {name: count}}: the next report compares with them, since
    accounts and bounces are deleted later.
    """

    kind = models.CharField(max_length=10)  # week, month
    period_start = models.DateTimeField()
    sent_at = models.DateTimeField()
    figures = models.JSONField(default=dict)
    # Empty in rows of an earlier version, which did not tell recipients apart.
    recipients_sha256 = models.CharField(max_length=64, default="", db_default="")

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["kind", "period_start", "recipients_sha256"],
                name="sentreport_once",
            )
        ]


class JobRun(models.Model):
    """One run of a job. Its watching process writes the row.

    Its working process holds the advisory lock of `run_id`. If a row is `running`, its
    lock is free, and nobody has written it for a while, the run has crashed.
    """

    class Outcome(models.TextChoices):
        RUNNING = "running"
        SUCCEEDED = "succeeded"
        FAILED = "failed"
        TIMED_OUT = "timed out"
        INTERRUPTED = "interrupted"
        SKIPPED = "skipped"
        CRASHED = "crashed"

    class Trigger(models.TextChoices):
        SCHEDULE = "schedule"
        CATCH_UP = "catch-up"
        MANUAL = "manual"  # a person started the line of the crontab, by `jobs run`
        HAND = "by hand"  # a person typed the command, with any options

    run_id = models.UUIDField(default=uuid.uuid4)
    job = models.CharField(max_length=200)
    # The time of the crontab that it is for; None if a person started the run.
    slot = models.DateTimeField(null=True)
    # 1, 2, ...: a slot whose run failed is run again.
    attempt = models.PositiveSmallIntegerField(default=1)
    trigger = models.CharField(max_length=10, choices=Trigger.choices)
    command = models.TextField()
    host = models.CharField(max_length=255)
    pid = models.PositiveIntegerField()
    started_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True)
    # When the watching process last wrote this row, by the clock of the database.
    seen_at = models.DateTimeField(null=True)
    outcome = models.CharField(
        max_length=11, choices=Outcome.choices, default=Outcome.RUNNING
    )
    exit_code = models.SmallIntegerField(null=True)
    seconds = models.FloatField(null=True)
    # The counts that the job reports: {"deleted": 2}.
    counts = models.JSONField(default=dict)
    output = models.TextField(default="")  # the end of it
    error = models.TextField(default="")  # one line

    class Meta:
        constraints = [
            # The claim: of any number of replicas only one can insert the row.
            models.UniqueConstraint(
                fields=["job", "slot", "attempt"], name="jobrun_slot_once"
            )
        ]
        indexes = [
            models.Index(fields=["job", "-started_at"], name="jobrun_of_job"),
            models.Index(fields=["-started_at"], name="jobrun_by_time"),
            # `jobs show` finds a run by its id in the log.
            models.Index(fields=["run_id"], name="jobrun_by_run_id"),
            models.Index(
                fields=["run_id"],
                condition=models.Q(outcome="running"),
                name="jobrun_running",
            ),
            models.Index(
                fields=["-started_at"],
                condition=models.Q(outcome__in=["failed", "timed out", "crashed"]),
                name="jobrun_failed",
            ),
        ]
