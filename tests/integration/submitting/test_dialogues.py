"""Dialogues through a real worker: each turn gets the earlier turns."""

from uuid import UUID

from db.reading.job_details import JobDetails, find_details
from db.reading.results import find_results
from db.states import JobState
from tasks import chat
from tests.running.workers import Cluster, on_sqlite

CONTEXT = 24  # words of a prompt, to the fake engine


def asked(text: str, *system: str) -> list[dict[str, str]]:
    return [
        *({"role": "system", "content": each} for each in system),
        {"role": "user", "content": text},
    ]


@on_sqlite
def test_a_dialogue_goes_on_turn_by_turn_and_says_what_it_left_out(producer: Cluster) -> None:
    producer.configure(max_input_tokens=CONTEXT)
    num_jobs = 0

    def turn(text: str, *system: str, previous: UUID | None = None) -> JobDetails:
        nonlocal num_jobs
        submitted = chat.submit(
            messages=asked(text, *system), previous_job_id=previous, max_new_tokens=3
        )
        num_jobs += 1
        producer.wait_for(JobState.SUCCEEDED, num_jobs)
        details = find_details(submitted.id, database=producer.database)
        assert details is not None
        return details

    with producer.worker():
        first = turn("one two three", "be brief")
        second = turn("four five", previous=first.job.id)
        third = turn("six seven", previous=second.job.id)
        last = turn("w " * 12, previous=third.job.id)
    # The fake engine counts words: 2 of the system, the user's, and 3 of each answer.
    assert first.job.prompt_tokens == 2 + 3
    assert second.job.prompt_tokens == 2 + (3 + 3) + 2
    assert third.job.prompt_tokens == 2 + (3 + 3) + (2 + 3) + 2
    assert last.job.prompt_tokens == 2 + (2 + 3) + (2 + 3) + 12, "the oldest turn has no room"
    reports = [each.provenance["dialogue"] for each in (second, third, last) if each.provenance]
    assert [(each["turns"], each["turns_left_out"]) for each in reports] == [(1, 0), (2, 0), (3, 1)]
    assert "dialogue" not in (first.provenance or {})
    incomplete = find_results(is_whole=False, database=producer.database)
    assert [each.id for each in incomplete] == [last.job.id]
