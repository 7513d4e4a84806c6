"""Start PostgreSQL, Redis, S3 and SES before Django's settings are read.

pytest-django reads the settings before any conftest.py is imported; a plugin named in
`addopts` comes first.
"""

import os
import signal
import tempfile
from pathlib import Path

import pytest

from demo.services import LocalServices
from tests.launcher import launcher

# What nohup or a shell starts in the background ignores them, and its children do too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
_folder = tempfile.TemporaryDirectory(prefix="starview-tests-")
# `make soak S3=minio`: a MinIO instead of moto.
_minio = Path(__file__).resolve().parent.parent / ".tools" / "minio"
services = LocalServices(
    Path(_folder.name),
    is_durable=False,
    minio=_minio if os.environ.get("TESTS_S3") == "minio" else None,
)
services.start()
for _name in [name for name in os.environ if name.startswith(("AWS_", "AUDIT_R2_"))]:
    del os.environ[_name]  # the machine's own must not decide a test
os.environ.update(services.environment)
services.create_bucket()
services.verify_sender()


def pytest_unconfigure(config: pytest.Config) -> None:
    if launcher.cache_info().currsize:
        launcher().close()
    services.stop()
    _folder.cleanup()
