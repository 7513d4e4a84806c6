"""The stores that the settings name for the audit archive and for backups."""

from pathlib import Path

from django.conf import settings

from starview_app.maintenance.stores.base import Store
from starview_app.maintenance.stores.folder import FolderStore
from starview_app.maintenance.stores.s3 import S3Store, Variables

# Jobs that write to the archive's chain of manifests must not run at the same time.
LOCK_NAME = "audit_archives"
PREFIX = "audit-archives/"
# A backup must not be removed while it is restored.
BACKUP_LOCK_NAME = "database_backups"
BACKUP_PREFIX = "database-backups/"


def archive_store() -> Store:
    """Return the separate audit bucket if there is one; a folder in development."""
    return _store(PREFIX, settings.AUDIT_ARCHIVE_FOLDER)


def backup_store() -> Store:
    """Return the store in the archive's bucket; a folder in development."""
    return _store(BACKUP_PREFIX, settings.DATABASE_BACKUP_FOLDER)


def _store(prefix: str, folder: Path) -> Store:
    if settings.DEBUG:
        return FolderStore(folder)
    variables = _variables()
    return S3Store(
        endpoint_url=settings.AWS_S3_ENDPOINT_URL,
        access_key_id=getattr(settings, variables.key_id),
        secret_access_key=getattr(settings, variables.secret),
        bucket=_bucket(),
        prefix=prefix,
        variables=variables,
    )


def archive_location() -> str:
    """Return the place of the archives, in the guide's words."""
    if settings.DEBUG:
        return f"{settings.AUDIT_ARCHIVE_FOLDER.name}/ folder"
    return f'R2 bucket "{_bucket()}" in {PREFIX} folder'


def is_public() -> bool:
    """Whether the bucket is the one of the media, which R2_PUBLIC_URL serves."""
    if settings.DEBUG or not settings.R2_PUBLIC_URL:
        return False
    return bool(_bucket() == settings.AWS_STORAGE_BUCKET_NAME)


def public_warning() -> str:
    """Return a warning if the bucket is public, or an empty string."""
    if not is_public():
        return ""
    return (
        f"the archives, with IP addresses and user names, go to bucket {_bucket()!r},"
        f" which R2_PUBLIC_URL={settings.R2_PUBLIC_URL} serves to everybody HINT: set"
        " AUDIT_R2_BUCKET_NAME to a private one, and AUDIT_R2_ACCESS_KEY_ID and"
        " AUDIT_R2_SECRET_ACCESS_KEY where it has a key pair of its own"
    )


def store_in_use() -> dict[str, str]:
    """Return the bucket and the variable of the key pair in use, for the log."""
    if settings.DEBUG:
        return {}
    return {"bucket": _bucket(), "keys": _variables().key_id}


def _variables() -> Variables:
    pair = "AUDIT_R2" if settings.AUDIT_R2_ACCESS_KEY_ID else "AWS"
    return Variables(
        key_id=f"{pair}_ACCESS_KEY_ID",
        secret=f"{pair}_SECRET_ACCESS_KEY",
        bucket=_bucket_variable(),
    )


def _bucket() -> str:
    return str(getattr(settings, _bucket_variable()))


def _bucket_variable() -> str:
    is_own = bool(settings.AUDIT_R2_BUCKET_NAME)
    return "AUDIT_R2_BUCKET_NAME" if is_own else "AWS_STORAGE_BUCKET_NAME"
