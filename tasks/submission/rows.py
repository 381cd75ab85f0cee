"""Rows: a contract as a job row and a payload row."""

from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from db.lane import Lane
from db.states import JobState
from tasks.configuration.catalog import Catalog
from tasks.contracts.contract import Contract
from tasks.errors import ContractError, Problem

ROUTE = "route"  # field of a translation through several models, beside the contract's own


def job_and_payload_rows(
    catalog: Catalog, chunk: list[tuple[Contract, str | None]], batch_id: UUID
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    jobs = [job_row(catalog, contract, uuid7(), batch_id, key) for contract, key in chunk]
    payloads = [
        payload_row(catalog, contract, job["id"])
        for (contract, _), job in zip(chunk, jobs, strict=True)
    ]
    return jobs, payloads


# Every row of an insert names the same columns.
_EMPTY: dict[str, Any] = {
    "batch_id": None,
    "priority": 0,
    "idempotency_key": None,
    "language": None,
    "not_before": None,
    "deadline": None,
    "time_limit_seconds": None,
    "traceparent": None,
    "error_code": None,
    "error_message": None,
}


def job_row(
    catalog: Catalog, contract: Contract, job_id: UUID, batch_id: UUID | None, key: str | None
) -> dict[str, Any]:
    model = catalog.route(
        contract.task,
        contract.model,
        getattr(contract, "source_language", None),
        contract.language_of_output,
    )
    lane = contract.lane or (Lane.INTERACTIVE if batch_id is None else Lane.BULK)
    if key is not None and len(key) > 256:
        fault = f"makes the key {len(key)} characters long; at most 256 are taken"
        raise ContractError(contract.task, [Problem("custom_id", fault)])
    return {
        **_EMPTY,
        "id": job_id,
        "task": contract.task,
        "model": model.alias,
        "state": JobState.QUEUED,
        "lane": lane,
        "priority": contract.priority,
        "tenant": contract.tenant,
        "batch_id": batch_id,
        "custom_id": contract.custom_id,
        "idempotency_key": key,
        "language": contract.language_of_output,
        "num_characters": contract.num_characters,
        "deadline": contract.deadline,
        "time_limit_seconds": contract.time_limit_seconds,
    }


def payload_row(catalog: Catalog, contract: Contract, job_id: UUID) -> dict[str, Any]:
    work = contract.work()
    legs = catalog.legs(
        contract.task,
        contract.model,
        getattr(contract, "source_language", None),
        contract.language_of_output,
    )
    if legs:
        # The route is kept with the job, so that a worker with another catalog continues it.
        work[ROUTE] = [leg.to_json() for leg in legs]
    return {
        "job_id": job_id,
        "contract": work,
        "metadata": contract.metadata,
        "previous_job_id": getattr(contract, "previous_job_id", None),
    }


def as_given(contract: dict[str, Any]) -> dict[str, Any]:
    """A stored contract without the fields that we added."""
    return {name: value for name, value in contract.items() if name != ROUTE}
