import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="AuditManifest",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True,
                        primary_key=True,
                        serialize=False,
                        verbose_name="ID",
                    ),
                ),
                ("location", models.CharField(max_length=1000)),
                ("sequence", models.PositiveIntegerField()),
                ("name", models.CharField(max_length=255)),
                ("body", models.TextField()),
                ("sha256", models.CharField(max_length=64)),
                ("is_written", models.BooleanField(default=False)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("location", "sequence"), name="manifest_sequence_once"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="AuditArchive",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True,
                        primary_key=True,
                        serialize=False,
                        verbose_name="ID",
                    ),
                ),
                ("location", models.CharField(max_length=1000)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("open", "Open"),
                            ("archived", "Archived"),
                            ("removing", "Removing"),
                            ("removed", "Removed"),
                        ],
                        default="open",
                        max_length=10,
                    ),
                ),
                ("archived_at", models.DateTimeField()),
                ("retention_days", models.PositiveIntegerField()),
                ("first_timestamp", models.DateTimeField()),
                ("first_id", models.BigIntegerField()),
                ("last_timestamp", models.DateTimeField()),
                ("last_id", models.BigIntegerField()),
                ("names", models.JSONField()),
                ("row_count", models.PositiveBigIntegerField(default=0)),
                ("objects_written", models.JSONField(default=list)),
                (
                    "manifest",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        to="maintenance.auditmanifest",
                    ),
                ),
            ],
        ),
    ]
