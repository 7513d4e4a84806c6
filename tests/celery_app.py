"""A Celery application such as a web service has; its worker is a process of a test.

python -m celery -A tests.celery_app worker
"""

import os

import django
from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "starview.settings")
django.setup()

app = Celery("starview", broker=os.environ["REDIS_URL"])
app.conf.update(
    broker_connection_retry_on_startup=True,
    task_default_queue=os.environ.get("CELERY_QUEUE", "celery"),
    imports=["starview_app.maintenance.tasks"],
)
