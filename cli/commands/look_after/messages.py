"""`tidemill messages`: manages the quarantine of messages that could not be taken."""

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import options
from cli.output.terminal import inert, note, plural, print_table, say, table, write_json

if TYPE_CHECKING:
    from db.models import QuarantinedMessage
    from db.session import Database

# Of these the contents are kept, not what stood in the queue.
NO_ENTRIES = ("bad_job_ids", "unknown_jobs", "id_conflict", "unkept", "revoked", "wrong_type")
# Kombu's books and our own: what stood there was in no queue.
NO_QUEUES = ("unacked", "tidemill:quarantine")


def messages(
    chosen: Annotated[
        list[str] | None, typer.Argument(metavar="MESSAGE", help="Message ids; default all.")
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="The most messages to list, newest first.")
    ] = 50,
    raw: Annotated[
        bool, typer.Option("--raw", help="Write one message unchanged to standard output.")
    ] = False,
    requeue: Annotated[
        bool, typer.Option("--requeue", help="Put the named messages back into their queues.")
    ] = False,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete the named messages; without names, all.")
    ] = False,
    json: options.Json = False,
) -> None:
    """List the messages that could not be taken, with the reason; show, requeue or delete them.

    Invalid messages are taken off the queues and stored here, the newest 10,000. The text of a
    message is only shown with --raw.
    """
    from sqlalchemy import select

    from cli.stack.ready import require_ready
    from db.audit import Act, append
    from db.encryption.sealed import passing_over_unopenable
    from db.models import QuarantinedMessage
    from db.queries import quarantine

    if (raw or requeue) and not chosen:
        raise typer.BadParameter("say which message, by its id", param_hint="MESSAGE")
    ids = options.job_ids(chosen or [])
    database = require_ready()
    listed = quarantine.quarantined(limit)
    if ids:
        listed = select(QuarantinedMessage).where(QuarantinedMessage.id.in_(ids))
    # To list or delete one, its body need not open.
    with nullcontext() if raw or requeue else passing_over_unopenable(), database.read() as session:
        rows = list(session.scalars(listed))
        num_kept = session.scalar(quarantine.num_quarantined()) or 0
    if ids and len(rows) < len(set(ids)):
        note(f"{plural(len(set(ids)) - len(rows), 'message')} not in the quarantine")
        raise typer.Exit(1)
    if raw:
        sys.stdout.flush()
        for message in rows:
            sys.stdout.buffer.write(message.body)
        sys.stdout.buffer.flush()
        return
    if requeue:
        _requeue(database, rows)
        note(f"{plural(len(rows), 'message')} put back")
    if requeue or delete:
        with database.write() as session:
            session.execute(quarantine.delete_quarantined(ids or None))
            act = Act.REQUEUE if requeue else Act.FORGET
            named = {"messages": [str(each.id) for each in rows]} if ids else {}
            append(session, act, named or {"num_messages": num_kept})
        if not requeue:
            note(f"{plural(len(rows) if ids else num_kept, 'message')} deleted")
        return
    if json:
        write_json([_as_json(message) for message in rows])
        return
    _print(rows)
    if num_kept > len(rows) and not ids:
        note(f"{num_kept - len(rows):,} older ones; --limit shows more")


def num_set_aside(database: "Database") -> int:
    """The number of messages in the quarantine."""
    from db.queries import quarantine

    with database.read() as session:
        return session.scalar(quarantine.num_quarantined()) or 0


def _print(rows: "list[QuarantinedMessage]") -> None:
    if not rows:
        say("No message was set aside.")
        return
    listing = table("id", "arrived", "queue", "reason", "task", "job", "bytes")
    for message in rows:
        listing.add_row(
            str(message.id),
            f"{message.arrived_at.astimezone():%Y-%m-%d %H:%M:%S}",
            inert(message.queue),
            message.reason,
            inert(message.task or ""),
            str(message.job_id or ""),
            f"{message.num_bytes:,}",
        )
    print_table(listing)
    for code in sorted({message.reason for message in rows}):
        note(f"{code}: {_sentence(code)}")


def _requeue(database: "Database", rows: "list[QuarantinedMessage]") -> None:
    """Put messages back into their queues, and delete the failed jobs stored in their place."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    from cli.errors import BrokerUnreachable
    from db.connection.url_redaction import masked
    from db.queries import quarantine
    from tasks.configuration import settings

    for message in rows:
        if (
            message.reason in NO_ENTRIES
            or message.queue in NO_QUEUES
            or len(message.body) < message.num_bytes
        ):
            note(f"{message.id} is not kept as it stood in its queue, so it cannot be put back")
            raise typer.Exit(1)
    url = settings.broker_url()
    # While one of its id is there, a message is that job's and changes nothing.
    with database.write() as session:
        for message in rows:
            if message.job_id is not None:
                session.execute(quarantine.delete_never_begun(message.job_id, message.reason))
    try:
        once = Retry(NoBackoff(), 0)
        with redis.Redis.from_url(url, socket_connect_timeout=5, retry=once) as client:
            for message in rows:
                client.lpush(message.queue, message.body)
    except (redis.RedisError, OSError) as error:
        raise BrokerUnreachable(
            f"Redis at {masked(url)} did not take all of them ({type(error).__name__}); "
            "they are still kept, and one that comes twice is one job"
        ) from error


def _as_json(message: "QuarantinedMessage") -> dict[str, Any]:
    return {
        "id": str(message.id),
        "arrived_at": message.arrived_at.isoformat(),
        "queue": message.queue,
        "reason": message.reason,
        "sentence": _sentence(message.reason),
        "task": message.task,
        "origin": message.origin,
        "job_id": str(message.job_id) if message.job_id else None,
        "num_bytes": message.num_bytes,
        "is_whole": message.body is not None and len(message.body) == message.num_bytes,
    }


def _sentence(code: str) -> str:
    from tasks.quarantine import Reason

    return next((reason.sentence for reason in Reason if reason.value == code), code)
