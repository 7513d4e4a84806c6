"""One process's part of an archive run that several processes share."""

from collections.abc import Callable
from dataclasses import dataclass

from starview_app.maintenance.jobs.audit_archive.segments import (
    ChangedMeanwhileError,
    SegmentArchiver,
    SegmentVanishedError,
)
from starview_app.maintenance.jobs.audit_archive.sharing.claims import (
    Claim,
    Claims,
    take_lease,
)
from starview_app.maintenance.jobs.audit_archive.transfer import (
    ATTEMPTS,
    Refusals,
    RefusedRowsError,
    StopRequested,
    changed_too_often,
)
from starview_app.maintenance.jobs.result import ShouldStop
from starview_app.maintenance.models import AuditArchive
from starview_app.maintenance.stores.base import Store

# Called in a helper's process with its own `should_stop`, and with a function that
# sends the id of an archived record to this process.
Part = Callable[[ShouldStop, Callable[[int], None]], None]


@dataclass(frozen=True)
class Sharing:
    """How a run shares its work.

    `start` calls a Part in the process of each helper, if there are any, and passes on
    the ids that they send, until all have ended. `store` makes a store for each
    process.
    """

    start: Callable[[Part, Callable[[int], None]], None]
    store: Callable[[], Store]


@dataclass(frozen=True)
class Worker:
    """Archives segment after segment until no claim is left.

    `archived` is called with each archived record, `abandoned` with the record of a
    process that is gone.
    """

    store: Store
    claims: Claims
    should_stop: ShouldStop
    archived: Callable[[AuditArchive], None]
    abandoned: Callable[[AuditArchive], None]

    def work(self) -> None:
        """Raises JobError, StoreError, StopRequested."""
        refusals = Refusals()
        while not self.should_stop():
            claim = self.claims.next()
            if claim is None:
                refusals.raise_first()
                return
            if claim.replaces:
                self.abandoned(claim.replaces)
            try:
                self._archive(claim)
            except RefusedRowsError as error:
                refusals.add(error)
        raise StopRequested

    def _archive(self, claim: Claim) -> None:
        archiver = SegmentArchiver(self.store, self.should_stop, begin=take_lease)
        record: AuditArchive | None = claim.record
        attempts = 0
        while record:
            try:
                archiver.archive(record)
            except SegmentVanishedError:
                return
            except ChangedMeanwhileError:
                attempts += 1
                if attempts == ATTEMPTS:
                    raise changed_too_often() from None
                # A new record has new names; None if another process has taken over.
                record = self.claims.again(claim.ends)
            else:
                self.archived(record)
                return
