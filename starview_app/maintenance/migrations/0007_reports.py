"""The reports that were mailed, each period once."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("maintenance", "0006_backups"),
    ]

    operations = [
        migrations.CreateModel(
            name="SentReport",
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
                ("kind", models.CharField(max_length=10)),
                ("period_start", models.DateTimeField()),
                ("sent_at", models.DateTimeField()),
                ("figures", models.JSONField(default=dict)),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("kind", "period_start"), name="sentreport_once"
                    )
                ],
            },
        ),
    ]
