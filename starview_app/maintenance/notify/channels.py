"""The channels: one line for each file of this folder that has a `send(message)`.

    def send(message: Message) -> bool

returns True when the message was delivered or is none of the channel's business, and
False when it is to be sent again. An exception means False as well, and is logged:
NotDelivered as its text, any other with its type.
"""

from dataclasses import dataclass
from importlib import import_module

from django.conf import settings

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
    name: str  # of its file, and of its memory
    hears: _Kinds
    # The channel is off while this is empty, and with DISABLE_EXTERNAL_APIS.
    setting: str = ""
    # Whether it may learn names and addresses of accounts.
    is_ours: bool = False

    @property
    def is_on(self) -> bool:
        if not self.setting:
            return True
        is_set = bool(getattr(settings, self.setting))
        return is_set and not settings.DISABLE_EXTERNAL_APIS

    def send(self, message: Message) -> bool:
        """Import the channel, so that only who uses it pays for its libraries."""
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
    """Why a message was not delivered, on one line."""
    is_clear = isinstance(error, NotDelivered)
    text = str(error) if is_clear else f"{type(error).__name__}: {error}"
    return one_line(" ".join(text.split()))[:_LONGEST_REASON]
