"""Set up the web service's sign-in with Google, in the web service's tables."""

from dataclasses import dataclass, field

from allauth.socialaccount.models import SocialApp
from django.contrib.sites.models import Site
from django.db import transaction

from starview_app.maintenance.errors import JobError
from starview_app.maintenance.jobs.result import JobResult

PROVIDER = "google"
# Django's placeholder for the site in a new database.
PLACEHOLDER = "example.com"


@dataclass
class SetUp:
    """The changes that were, or would be, made: one line each, without secrets."""

    domain: str
    changes: list[str] = field(default_factory=list)


def set_up_google(
    *,
    client_id: str,
    secret: str,
    site_id: int,
    domain: str = "",
    default_domain: str = "",
    dry_run: bool = False,
) -> tuple[SetUp, JobResult]:
    """Create or update the app and its site, in one transaction.

    The site gets `domain`; without it, an existing site keeps its domain, and a new one
    gets `default_domain`. Raises JobError, with nothing changed, if there are two apps,
    or if the site still has Django's placeholder. Counts: changed.
    """
    with transaction.atomic():
        app = _the_app()
        site = Site.objects.select_for_update().filter(pk=site_id).first()
        site = site or Site(pk=site_id)
        wanted = domain or site.domain or default_domain
        if wanted in ("", PLACEHOLDER):
            raise JobError(
                f"site {site_id} is {site.domain or 'not there'}, so Google would send"
                " people to nobody HINT: add --domain with the web service's host name,"
                " such as --domain=starview.app"
            )
        _refuse_what_does_not_fit(site, wanted, client_id, secret)
        done = SetUp(wanted, _site_changes(site, wanted))
        done.changes += _app_changes(app, client_id, secret)
        is_linked = bool(app.pk) and app.sites.filter(pk=site_id).exists()
        if not is_linked:
            done.changes.append(f"the app is used on {wanted}")
        if done.changes and not dry_run:
            site.save()
            app.save()
            app.sites.add(site)
    return done, JobResult({"changed": len(done.changes)})


# -- internal helpers -----------------------------------------------------------------


def _refuse_what_does_not_fit(
    site: Site, domain: str, client_id: str, secret: str
) -> None:
    """Raise JobError for what the tables would not take."""
    if other := Site.objects.filter(domain=domain).exclude(pk=site.pk).first():
        raise JobError(
            f"site {other.pk} is {domain} already, and Google's app belongs to site"
            f" {site.pk} HINT: delete site {other.pk} in the admin, Sites, or give it"
            " another domain"
        )
    for column, value in (("client_id", client_id), ("secret", secret)):
        most = SocialApp._meta.get_field(column).max_length
        if most and len(value) > most:
            raise JobError(
                f"Google's {column.replace('_', ' ')} has {len(value)} characters, and"
                f" the table takes {most} HINT: copy it again from the Google Cloud"
                " console"
            )


def _the_app() -> SocialApp:
    apps = list(
        SocialApp.objects.select_for_update().filter(provider=PROVIDER).order_by("pk")
    )
    if len(apps) > 1:
        names = ", ".join(f"{app.pk} ({app.name})" for app in apps)
        raise JobError(
            f"there are {len(apps)} apps for Google, of which allauth can use one:"
            f" {names} HINT: delete all but one in the admin, Social applications"
        )
    return apps[0] if apps else SocialApp(provider=PROVIDER, name="Google")


def _site_changes(site: Site, domain: str) -> list[str]:
    if site.domain == domain:
        return []
    before = f", instead of {site.domain}" if site.domain else ""
    if site.name in ("", site.domain, PLACEHOLDER):
        site.name = domain[:50]  # the length of the column
    site.domain = domain
    return [f"site {site.pk} is {domain}{before}"]


def _app_changes(app: SocialApp, client_id: str, secret: str) -> list[str]:
    changes = [] if app.pk else ["the app for Google is made"]
    if app.client_id != client_id:
        changes.append(f"its client id is {client_id}")
    if app.secret != secret:
        changes.append("its secret is the one of GOOGLE_OAUTH_CLIENT_SECRET")
    app.client_id, app.secret = client_id, secret
    return changes
