"""What was announced is remembered for each channel, in a table of its own.

What `maintenance_job` knew of the mails is copied. Its three columns stay in the table:
during a deploy the image of before still reads and writes them.
"""

from django.db import migrations, models

_COPY = """
    INSERT INTO maintenance_announcement
        (channel, job, announced_at, announced_slot, failing_since)
    SELECT 'mail', name, alerted_at, alerted_slot, failing_since
    FROM maintenance_job
    WHERE alerted_at IS NOT NULL AND alerted_slot IS NOT NULL
"""


class Migration(migrations.Migration):
    dependencies = [
        ("maintenance", "0004_schedule_memory"),
    ]

    operations = [
        migrations.CreateModel(
            name="Announcement",
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
                ("channel", models.CharField(max_length=50)),
                ("job", models.CharField(max_length=200)),
                ("announced_at", models.DateTimeField()),
                ("announced_slot", models.DateTimeField()),
                ("failing_since", models.DateTimeField(null=True)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("channel", "job"), name="announcement_once"
                    )
                ],
            },
        ),
        migrations.RunSQL(
            _COPY,
            migrations.RunSQL.noop,
            state_operations=[
                migrations.RemoveField("job", name)
                for name in ("alerted_at", "alerted_slot", "failing_since")
            ],
        ),
    ]
