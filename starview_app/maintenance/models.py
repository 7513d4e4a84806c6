"""What this image remembers: tables `maintenance_*`, beside those of the web service.

No foreign key leads to a table of the web service, so that neither side ever has to
wait for, or know of, the other's migrations.
"""

import uuid
from datetime import timedelta

from django.db import models


class AuditManifest(models.Model):
    """One link of the chain that proves the archives of a store complete.

    The text is fixed here, in the commit that gives it its number, before it is
    written: a run that is killed leaves neither a gap nor two manifests of one number.
    """

    # Where it is: see `Store.location`. Each place has a chain of its own.
    location = models.CharField(max_length=1000)
    sequence = models.PositiveIntegerField()  # 1, 2, 3, ...
    name = models.CharField(max_length=255)
    body = models.TextField()
    sha256 = models.CharField(max_length=64)
    # The object is in the store, read back and equal.
    is_written = models.BooleanField(default=False)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["location", "sequence"], name="manifest_sequence_once"
            )
        ]


class AuditArchive(models.Model):
    """One segment of the audit log: what was, or is being, moved to a store.

    A state is left once and never returned to:

        open ──► archived ──► removing ──► removed
          └────► abandoned

    `open` is committed before the first object is written. `archived` is committed
    together with the deletion of the rows, and with nothing else: while a segment is
    open its rows are in the table, afterwards they are in its objects. `abandoned` is
    committed before any of its objects is removed, by the run that opened it or by
    another one; then its rows can only be archived under another record. `removing`
    is committed before the first object of an archived segment is removed.

    Rows are never deleted, so that the names of a record's objects stay its own.
    """

    class State(models.TextChoices):
        OPEN = "open"
        ARCHIVED = "archived"
        ABANDONED = "abandoned"
        REMOVING = "removing"
        REMOVED = "removed"

    location = models.CharField(max_length=1000)
    # What the names of its objects begin with: a name belongs to one record for ever.
    stem = models.CharField(max_length=255)
    state = models.CharField(max_length=10, choices=State.choices, default=State.OPEN)
    # Of the run that opened it; to the microsecond it marks the objects as this one's.
    archived_at = models.DateTimeField()
    retention_days = models.PositiveIntegerField()
    # The segment's ends in the order (timestamp, id), both inclusive.
    first_timestamp = models.DateTimeField()
    first_id = models.BigIntegerField()
    last_timestamp = models.DateTimeField()
    last_id = models.BigIntegerField()
    # Of its objects, in the order of writing.
    names = models.JSONField()
    row_count = models.PositiveBigIntegerField(default=0)
    # As the manifest lists them; empty until archived.
    objects_written = models.JSONField(default=list)
    # None until a manifest lists it.
    manifest = models.ForeignKey(AuditManifest, on_delete=models.PROTECT, null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["location", "stem"], name="archive_stem_once"
            )
        ]


class Backup(models.Model):
    """One backup of the database: what was, or is being, written to a store.

    A state is left once and never returned to:

        open ──► good ──► removing ──► removed
          │        └────► lost
          └────► abandoned

    `open` is committed before the first byte is written. `good` is committed once the
    object was read back and equal, and `pg_restore` could list it; nothing else counts
    as a backup. `abandoned` is committed before an open one's objects are removed,
    `removing` before a good one's are. `lost`: it was good, and was not in the store
    when a run looked.

    Rows are never deleted, so that the names of a record's objects stay its own; no
    backup holds the rows of this table, so that no copy of the database takes itself
    for their owner.
    """

    class State(models.TextChoices):
        OPEN = "open"
        GOOD = "good"
        ABANDONED = "abandoned"
        LOST = "lost"
        REMOVING = "removing"
        REMOVED = "removed"

    location = models.CharField(max_length=1000)
    # Of the dump; its description has the same name and `.json` behind it.
    name = models.CharField(max_length=255)
    state = models.CharField(max_length=10, choices=State.choices, default=State.OPEN)
    started_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True)  # when it became good
    # When a drill last restored it and found everything in it.
    proved_at = models.DateTimeField(null=True)
    server_version = models.CharField(max_length=50)
    is_encrypted = models.BooleanField()
    # Of the object as it is stored.
    size_bytes = models.PositiveBigIntegerField(default=0)
    sha256 = models.CharField(max_length=64, default="")
    # What the database held in the dump's own snapshot: see `contents.Contents`.
    contents = models.JSONField(default=dict)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["location", "name"], name="backup_name_once"
            )
        ]


class ScheduleLine(models.Model):
    """A line of the crontab, as the ticks of catch-up have seen it.

    `runner.memory` is the only writer. A job whose times were changed has two lines for
    a while: during a deploy two crontabs are in force.
    """

    job = models.CharField(max_length=200)
    times = models.TextField()  # five fields
    # Slots before it are not missed: the job was not scheduled then, or at other times.
    first_seen_at = models.DateTimeField()
    # The last tick, whether or not its crontab had this line.
    seen_at = models.DateTimeField()
    # For how long the ticks since have not had it.
    absent = models.DurationField(default=timedelta(0))

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["job", "times"], name="scheduleline_once")
        ]


class Job(models.Model):
    """What people have left to remember of a job."""

    name = models.CharField(max_length=200, primary_key=True)
    # The newest pause: the schedule does not run what is due in it, the end not
    # included.
    paused_at = models.DateTimeField(null=True)
    paused_until = models.DateTimeField(null=True)


class Announcement(models.Model):
    """The last alert about a job that a channel has accepted.

    `notify.alerts` is the only writer: each channel is told what it has not accepted.
    """

    channel = models.CharField(max_length=50)
    job = models.CharField(max_length=200)
    announced_at = models.DateTimeField()
    # The newest slot whose trouble it was about.
    announced_slot = models.DateTimeField()
    # Since when the channel knows that the job fails; none: that it works.
    failing_since = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["channel", "job"], name="announcement_once")
        ]


class SentReport(models.Model):
    """A report that was mailed: each period once.

    The row is written in the transaction in which the mail is sent. `figures` are as
    they were measured then, {group: {name: count}}: accounts and bounces are deleted
    later, and the next report compares with what there was.
    """

    kind = models.CharField(max_length=10)  # week, month
    period_start = models.DateTimeField()
    sent_at = models.DateTimeField()
    figures = models.JSONField(default=dict)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["kind", "period_start"], name="sentreport_once"
            )
        ]


class JobRun(models.Model):
    """One run of a job. Written by the process that watches over it.

    It holds the advisory lock of `run_id` meanwhile: a row that is `running` and whose
    lock is free belongs to a process that is gone.
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
        MANUAL = "manual"  # `jobs run`: the line of the crontab, now
        HAND = "by hand"  # the command itself, with any options

    run_id = models.UUIDField(default=uuid.uuid4)
    job = models.CharField(max_length=200)
    # The time of the crontab that it is for; none when it was started by people.
    slot = models.DateTimeField(null=True)
    # 1, 2, ...: a slot that failed is tried again.
    attempt = models.PositiveSmallIntegerField(default=1)
    trigger = models.CharField(max_length=10, choices=Trigger.choices)
    command = models.TextField()
    host = models.CharField(max_length=255)
    pid = models.PositiveIntegerField()
    started_at = models.DateTimeField()
    finished_at = models.DateTimeField(null=True)
    # When its watching process last wrote this row; the database's own time.
    seen_at = models.DateTimeField(null=True)
    outcome = models.CharField(
        max_length=11, choices=Outcome.choices, default=Outcome.RUNNING
    )
    exit_code = models.SmallIntegerField(null=True)
    seconds = models.FloatField(null=True)
    # What the job reports: {"deleted": 2}.
    counts = models.JSONField(default=dict)
    output = models.TextField(default="")  # the last of it
    error = models.TextField(default="")  # one line

    class Meta:
        constraints = [
            # The claim: of any number of replicas one inserts.
            models.UniqueConstraint(
                fields=["job", "slot", "attempt"], name="jobrun_slot_once"
            )
        ]
        indexes = [
            models.Index(fields=["job", "-started_at"], name="jobrun_of_job"),
            models.Index(fields=["-started_at"], name="jobrun_by_time"),
            # `jobs show` finds a run by the id that the log names.
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
