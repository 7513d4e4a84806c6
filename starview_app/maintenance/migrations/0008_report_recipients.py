"""Each period is mailed once to the same recipients."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("maintenance", "0007_reports"),
    ]

    operations = [
        migrations.AddField(
            model_name="sentreport",
            name="recipients_sha256",
            field=models.CharField(default="", max_length=64, db_default=""),
        ),
        migrations.RemoveConstraint(
            model_name="sentreport",
            name="sentreport_once",
        ),
        migrations.AddConstraint(
            model_name="sentreport",
            constraint=models.UniqueConstraint(
                fields=("kind", "period_start", "recipients_sha256"),
                name="sentreport_once",
            ),
        ),
    ]
