"""The channels: one line for each file of this folder that has a `send(message)`.

    def send(message: Message) -> bool

returns True when the message was delivered or does not concern the channel, and False
when it must be sent again. An exception means False too, and is logged: NotDelivered
with its text only, any other with its type.
"""

from dataclasses import dataclass
from importlib import import_module

from django.conf import settings

from starview_app.maintenance.database_errors import message_of
from starview_app.maintenance.notify.message import (
    Alert,
    Message,
    NotDelivered,
    RunEnded,
    RunStarted,
)
from starview_app.maintenance.text import one_line

_LONGEST_REASON = 300  # characters
_Kinds = tuple[type[Message], ...]

RUNS: _Kinds = (RunStarted, RunEnded)
ALERTS: _Kinds = (Alert,)


@dataclass(frozen=True)
class Channel:
    name: str  # of its module, and the key of its announcements
    hears: _Kinds
    # The channel is off if this setting is empty, or with DISABLE_EXTERNAL_APIS. A
    # channel without a setting is always on.
    setting: str = ""
    # Whether its messages may have names and addresses of accounts.
    is_ours: bool = False

    @property
    def is_on(self) -> bool:
        if not self.setting:
            return True
        is_set = bool(getattr(settings, self.setting))
        return is_set and not settings.DISABLE_EXTERNAL_APIS

    def send(self, message: Message) -> bool:
        """Import the channel's module and call its `send`.

        The import is here so that only a process that uses the channel loads its
        libraries.
        """
        module = import_module(f"{__package__}.{self.name}")
        return bool(module.send(message if self.is_ours else message.for_strangers()))


CHANNELS = (
    Channel("mail", ALERTS, is_ours=True),
    Channel("log", ALERTS),
    Channel("healthchecks", RUNS, "HEARTBEAT_URL"),
    Channel("sentry", RUNS, "SENTRY_DSN"),
)


def channels_for(kinds: _Kinds) -> list[Channel]:
    return [each for each in CHANNELS if each.hears == kinds and each.is_on]


def reason_of(error: Exception) -> str:
    """Return in one line why a message was not delivered."""
    is_clear = isinstance(error, NotDelivered)
    text = str(error) if is_clear else f"{type(error).__name__}: {message_of(error)}"
    return one_line(" ".join(text.split()))[:_LONGEST_REASON]
