"""Batches: stores many contracts in chunks."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from sqlalchemy import select
from uuid_utils.compat import uuid7

from db.encryption.key_check import require_keys_once
from db.models import Batch
from db.queries import inserts
from db.queries.jobs import submission
from db.session import Database
from tasks.configuration import settings
from tasks.configuration.catalog import Catalog
from tasks.contracts.contract import Contract
from tasks.submission.first_seen import FirstSeen
from tasks.submission.previous_job import continued
from tasks.submission.rows import job_and_payload_rows
from tasks.submission.submitted import SubmittedBatch
from tasks.submit import append_submit
from tasks.tracing import submitting

CHUNK = 1000


def submit_batch(
    contracts: Iterable[Contract],
    *,
    name: str,
    run_key: str | None = None,
    tenant: str = "default",
    metadata: dict[str, str] | None = None,
    on_progress: Callable[[int], None] = lambda num_kept: None,
    is_complete: Callable[[], bool] = lambda: True,
) -> SubmittedBatch:
    """Store many jobs in chunks; the dispatcher publishes them.

    It is notified after each chunk; without Redis it finds them a little later.

    run_key makes a second call harmless: existing jobs stay unchanged, and jobs that an interrupted
    first call left out are added. A contract without an idempotency key gets one from its custom
    id, or else from its number. Raises Refused at the first contract with an unknown model,
    language or previous job, and DuplicateId if two contracts of the call have the same custom id
    (or idempotency key, if they bring their own). Jobs stored before that stay, and a second call
    continues. is_complete is called after the last contract: if it returns False, the batch stays
    open for a second call.
    """
    from tasks.submission.notifications import (
        Notifier,  # imports redis-py, which only batches need
    )

    database, catalog = settings.database(), settings.catalog()
    require_keys_once(database)
    batch = _open_batch(database, catalog, name, run_key, tenant, metadata or {})
    if batch.closed_at is not None:
        with database.read() as session:
            states = dict(session.execute(submission.job_states(batch.id)).all())
        return SubmittedBatch(batch.id, batch.name, 0, sum(states.values()))
    num_new = num_known = 0
    keyed = _with_keys(contracts, run_key)
    with Notifier() as notifier, submitting("batch") as traceparent:
        for chunk in iter(lambda: list(islice(keyed, CHUNK)), []):
            jobs, payloads = job_and_payload_rows(
                catalog,
                [(continued(database, catalog, contract), key) for contract, key in chunk],
                batch.id,
            )
            for job in jobs if traceparent is not None else ():
                job["traceparent"] = traceparent
            with database.write() as session:
                inserted = submission.insert_jobs(session, jobs)
                new_payloads = [payload for payload in payloads if payload["job_id"] in inserted]
                if new_payloads:
                    session.execute(submission.insert_payloads(), new_payloads)
            if inserted:
                notifier.notify()
            num_new += len(inserted)
            num_known += len(jobs) - len(inserted)
            on_progress(num_new + num_known)
    complete = is_complete()
    with database.write() as session:
        if complete:
            session.execute(submission.close_batch(batch.id))
        if num_new >= CHUNK:
            submission.refresh_statistics(session)
    return SubmittedBatch(batch.id, batch.name, num_new, num_known)


def _open_batch(
    database: Database,
    catalog: Catalog,
    name: str,
    run_key: str | None,
    tenant: str,
    metadata: dict[str, str],
) -> Batch:
    """The batch with its run key, or a new one; one entry in the audit stands for all its jobs.

    The entry is written first, since a submit that is interrupted has also stored jobs.
    """
    row = {
        "id": uuid7(),
        "name": name,
        "run_key": run_key,
        "tenant": tenant,
        "metadata": metadata,
        "closed_at": None,
    }
    with database.write() as session:
        session.execute(inserts.insert_unless_there(session, Batch), [row])
        is_batch = Batch.id == row["id"] if run_key is None else Batch.run_key == run_key
        batch = session.scalars(select(Batch).where(is_batch)).one()
        if batch.closed_at is None:
            append_submit(session, catalog, {"batch": str(batch.id)})
        return batch


def _with_keys(
    contracts: Iterable[Contract], run_key: str | None
) -> Iterator[tuple[Contract, str | None]]:
    first_seen = FirstSeen()
    for number, contract in enumerate(contracts, start=1):
        key, place = contract.idempotency_key, f"contract {number}"
        # If jobs have idempotency keys, several may share a custom id.
        if key is None and contract.custom_id is not None:
            first_seen.require_new("custom_id", contract.custom_id, place, contract.tenant)
        if key is None and run_key is not None:
            key = f"{run_key}/{contract.custom_id or f'#{number}'}"
        if key is not None:
            first_seen.require_new("idempotency_key", key, place, contract.tenant)
        yield contract, key
