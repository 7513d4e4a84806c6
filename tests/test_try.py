import pytest
from django.contrib.auth.models import User
from django.utils import timezone
from datetime import timedelta
from allauth.account.models import EmailAddress
from starview_app.models import *
@pytest.mark.django_db(transaction=True)
def test_a(manage, bucket):
    now=timezone.now()
    for n,d in (("testuser",10),("spammer",15),("young",3)):
        u=User.objects.create(username=n,email=n+"@x.com",date_joined=now-timedelta(days=d)); EmailAddress.objects.create(user=u,email=u.email)
        AuditLog.objects.create(user=u,username=n,message="hé\n\x1b[31m\u202e \u2028 \"q\" \\n",event_type="login_failed",timestamp=now-timedelta(days=40+d), ip_address="::1",metadata={"a":["\n",1,None,"\u202e"]})
    for c in (["cleanup_unverified_users","--dry-run"],["cleanup_unverified_users"],["cleanup_unverified_users"],["archive_audit_logs"],["archive_audit_logs"],["cleanup_email_suppressions","--email-report","a@example.com,b@example.com"],["cleanup_unverified_users","--days=0"]):
        r=manage(*c); print(c, r.returncode); print(r.stdout); print(r.stderr)
    for o in bucket.archived_objects(): print(o.key, bucket.read_object(o.key).decode())
    print(list(bucket.sent_mail())[-1][:500])
    assert 0
