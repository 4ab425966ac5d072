"""reuse=true: the tenant's own job of the very same file, where its answer is, or will be, the active bundle's."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from api.deps import Caller
from shared import bundles, canned, deeds, explanations, views
from shared.deeds import By
from shared.models import TEST, Job
from shared.schemas import Method, Status
from shared.settings import Settings

OPEN = (Status.QUEUED.value, Status.RUNNING.value)
ANSWERED = (Status.SUCCEEDED.value, Status.REJECTED.value)


def find(
    session: Session, settings: Settings, caller: Caller, by: By, sha256: str, explain: Sequence[Method]
) -> Job | None:
    """The newest job of the same file in the caller's mode, with `explain` asked for; None when there is none to reuse.

    What failed or was canceled is no answer, nor is that of another bundle. Raises BundleError.
    """
    active = canned.BUNDLE if caller.mode == TEST else bundles.read_manifest(settings.bundle).identity
    by_active = Job.status.in_(ANSWERED) & (Job.bundle == active)
    usable = or_(Job.status.in_(OPEN) & Job.cancel_requested.is_(False), by_active)
    same = select(Job).where(Job.tenant_id == caller.tenant_id, Job.sha256 == sha256, Job.mode == caller.mode, usable)
    job = session.scalars(same.order_by(Job.id.desc()).limit(1)).first()
    if job is None or job.status == Status.REJECTED:
        return job
    for method in explain:
        if explanations.request(session, caller.tenant_id, job.id, method):
            deeds.record(session, "explanation.requested", job.id, tenant_id=job.tenant_id, **by, method=method)
    return views.get(session, caller.tenant_id, job.id) if explain else job
