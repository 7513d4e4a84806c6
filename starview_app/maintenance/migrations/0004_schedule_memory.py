"""The memory of the schedule gets a table of its own, with one writer.

What `maintenance_job` knew is copied. Its three columns stay in the table: during a
deploy the image of before still writes them.
"""

from datetime import timedelta

from django.db import migrations, models

_COPY = """
    INSERT INTO maintenance_scheduleline (job, times, first_seen_at, seen_at, absent)
    SELECT name, times, first_seen_at, seen_at, interval '0'
    FROM maintenance_job
    WHERE times <> '' AND seen_at IS NOT NULL
"""
_LET_GO = """
    ALTER TABLE maintenance_job
        ALTER COLUMN first_seen_at DROP NOT NULL,
        ALTER COLUMN times SET DEFAULT ''
"""


class Migration(migrations.Migration):
    dependencies = [
        ("maintenance", "0003_abandoned_segments"),
    ]

    operations = [
        migrations.CreateModel(
            name="ScheduleLine",
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
                ("job", models.CharField(max_length=200)),
                ("times", models.TextField()),
                ("first_seen_at", models.DateTimeField()),
                ("seen_at", models.DateTimeField()),
                ("absent", models.DurationField(default=timedelta(0))),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("job", "times"), name="scheduleline_once"
                    )
                ],
            },
        ),
        migrations.RunSQL(_COPY, migrations.RunSQL.noop),
        migrations.RunSQL(
            _LET_GO,
            migrations.RunSQL.noop,
            state_operations=[
                migrations.RemoveField("job", name)
                for name in ("first_seen_at", "times", "seen_at")
            ],
        ),
        migrations.AddIndex(
            model_name="jobrun",
            index=models.Index(fields=["run_id"], name="jobrun_by_run_id"),
        ),
    ]
