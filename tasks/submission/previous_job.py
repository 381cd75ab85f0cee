"""The job that a chat continues, as far as it is known when the chat is submitted.

It must have succeeded. A turn replies to an answer, so one that is submitted before the answer is
most likely a mistake, and queueing it would tie its fate to another job's.
"""

from typing import TypeVar

from db.queries.jobs import dialogues
from db.session import Database
from db.states import UNFINISHED, JobState
from tasks.configuration.catalog import Catalog
from tasks.contracts.contract import Contract
from tasks.errors import PreviousJobUnfinished, PreviousJobUnusable, UnknownPreviousJob

C = TypeVar("C", bound=Contract)
CHAT = "chat"


def continued(database: Database, catalog: Catalog, contract: C) -> C:
    """The contract, with the model of the continued job if it names none.

    Raises Refused if that job cannot be continued.
    """
    job_id = getattr(contract, "previous_job_id", None)
    if job_id is None:
        return contract
    with database.read() as session:
        row = session.execute(dialogues.previous_job(job_id, contract.tenant)).one_or_none()
    if row is None:
        raise UnknownPreviousJob(job_id, contract.tenant)
    if row.task != CHAT:
        raise PreviousJobUnusable(job_id, f"it is a {row.task} job; only a chat can be continued")
    if row.state in UNFINISHED:
        raise PreviousJobUnfinished(job_id, row.state)
    if row.state != JobState.SUCCEEDED:
        raise PreviousJobUnusable(job_id, f"it is {row.state}, so it has no answer to go on from")
    if row.pruned_at is not None:
        raise PreviousJobUnusable(job_id, "its text has been deleted")
    model = catalog.models.get(row.model)
    if contract.model is not None or model is None or CHAT not in model.tasks:
        return contract
    return contract.model_copy(update={"model": row.model})
