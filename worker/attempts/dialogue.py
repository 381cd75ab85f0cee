"""Dialogue: the earlier turns of a chat job, read from the jobs that it continues."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeAlias
from uuid import UUID

from sqlalchemy.orm import Session

from db.encryption.key_ring import Unopenable
from db.queries.jobs import dialogues
from engine.protocol.request import ChatTurn

MAX_CHARACTERS = 4_000_000  # the most to read of a dialogue; no model takes more
JOBS_READ = 100  # at once

Messages: TypeAlias = tuple[ChatTurn, ...]


@dataclass(frozen=True, slots=True)
class Dialogue:
    """The turns before a job, oldest first, each a user's message with its answer."""

    system: Messages = ()  # the newest system messages of the jobs
    turns: tuple[Messages, ...] = ()
    num_unread: int = 0  # earlier turns that were not read, as no prompt could hold them
    characters_unread: int = 0
    is_broken: bool = False  # a job of the dialogue no longer exists

    @property
    def messages(self) -> Messages:
        return (*self.system, *(message for turn in self.turns for message in turn))

    def mapped(self, change: Callable[[str], str]) -> Self:
        """Return the dialogue with the content of each message changed."""

        def of(messages: Messages) -> Messages:
            return tuple(replace(each, content=change(each.content)) for each in messages)

        return replace(self, system=of(self.system), turns=tuple(map(of, self.turns)))


def messages_of(contract: Mapping[str, Any]) -> Messages:
    return tuple(ChatTurn(each["role"], each["content"]) for each in contract["messages"])


def split_system(messages: Messages) -> tuple[Messages, Messages]:
    """Split the leading system messages from the rest."""
    num = next((at for at, each in enumerate(messages) if each.role != "system"), len(messages))
    return messages[:num], messages[num:]


def turns_of(messages: Messages) -> tuple[Messages, ...]:
    """Group messages into turns, each of which starts with a user's message."""
    starts = [at for at, each in enumerate(messages) if each.role == "user"]
    if not starts:
        return (messages,) if messages else ()
    ends = [*starts[1:], len(messages)]
    # Messages before the first user's, such as an assistant's greeting, belong to the first turn.
    return tuple(messages[start:end] for start, end in zip([0, *starts[1:]], ends, strict=True))


def num_characters(turns: Sequence[Messages]) -> int:
    return sum(len(message.content) for turn in turns for message in turn)


def with_dialogues(
    session: Session, contracts: Mapping[UUID, dict[str, Any]]
) -> dict[UUID, dict[str, Any]]:
    """Add the `dialogue` to each contract that continues a job."""
    return {
        job_id: contract
        if (previous := contract.get("previous_job_id")) is None
        else {**contract, "dialogue": read_dialogue(session, UUID(previous))}
        for job_id, contract in contracts.items()
    }


def read_dialogue(session: Session, newest: UUID) -> Dialogue:
    """Read the turns up to and including a job: all, or the last that could fit a prompt."""
    jobs = session.execute(dialogues.chain(newest)).all()
    if not jobs or jobs[-1].previous_job_id is not None:
        return Dialogue(is_broken=True)
    system: Messages = ()
    turns: list[Messages] = []  # the newest first
    num_read = num_unread = characters_unread = 0
    try:
        jobs_before = list(_finished_turns(session, [job.job_id for job in jobs]))
    except Unopenable:  # somebody changed it in the database
        return Dialogue(is_broken=True)
    for contract, output in jobs_before:
        if contract is None or "messages" not in contract:
            return Dialogue(is_broken=True)
        own_system, rest = split_system(messages_of(contract))
        system = system or own_system
        pair = turns_of((*rest, ChatTurn("assistant", output)))
        length = num_characters(pair)
        if num_unread or num_read + length > MAX_CHARACTERS:
            num_unread += len(pair)
            characters_unread += length
        else:
            num_read += length
            turns += reversed(pair)
    return Dialogue(system, tuple(reversed(turns)), num_unread, characters_unread)


def _finished_turns(
    session: Session, job_ids: Sequence[UUID]
) -> Iterator[tuple[dict[str, Any] | None, str]]:
    """Yield the contract and output of each job, in order; None where they are gone."""
    for start in range(0, len(job_ids), JOBS_READ):
        chunk = job_ids[start : start + JOBS_READ]
        rows = {row.id: row for row in session.execute(dialogues.spoken(chunk))}
        for job_id in chunk:
            row = rows.get(job_id)
            yield (None, "") if row is None else (row.contract, row.output)
