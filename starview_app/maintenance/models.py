"""What this image remembers: tables `maintenance_*`, beside those of the web service.

No foreign key leads to a table of the web service, so that neither side ever has to
wait for, or know of, the other's migrations.
"""

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

    `open` is committed before the first object is written. `archived` is committed
    together with the deletion of the rows, and with nothing else: while a segment is
    open its rows are in the table, afterwards they are in its objects. `removing` is
    committed before the first object is removed.
    """

    class State(models.TextChoices):
        OPEN = "open"
        ARCHIVED = "archived"
        REMOVING = "removing"
        REMOVED = "removed"

    location = models.CharField(max_length=1000)
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
    # As the manifest lists them; empty while open.
    objects_written = models.JSONField(default=list)
    # None until a manifest lists it.
    manifest = models.ForeignKey(AuditManifest, on_delete=models.PROTECT, null=True)
