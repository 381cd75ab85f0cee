"""What is switched off (measures, masks, keys, records, cache, guards) costs a job nothing."""

import threading
from collections import Counter
from pathlib import Path
from types import FrameType

from tasks.generate import GenerateContract
from tests.running.serving import serving
from tests.running.workers import ROOT, Cluster, on_sqlite
from worker.cache.settings import CacheSettings

NUM_JOBS = 48
# Rooms of what can be switched on.
SWITCHED_ON = (
    "worker/metrics/",
    "worker/masking/",
    "worker/cache/",
    "worker/guards/",
    "worker/attempts/job_trace.py",
    "tasks/tracing.py",
    "db/encryption/",
    "db/audit.py",
    "db/queries/audit.py",
    "db/queries/retention.py",
    "db/queries/erasure.py",
    "db/upkeep/",
    "db/reading/quality.py",
    "db/reading/figures.py",
)
# Of its texts (what was sent, the answer, the thought before it) whether each looks like a sealed
# one: without that anybody could send a text that nobody can read. And whether its task is guarded,
# before and after.
PER_JOB = {
    "as_plain": 2,
    "SealedType.result_processor.<locals>.plain": 1,
    "Guard.recipe": 1,
    "Guard.examine": 1,
}


class Calls:
    """The calls of our own functions, by file and name, on threads that began since."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()

    def see(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(ROOT)):
            self.counts[frame.f_code.co_filename, frame.f_code.co_qualname] += 1

    def taken(self) -> Counter[tuple[str, str]]:
        """The counts since the last call, by a file's path from the root."""
        taken, self.counts = self.counts, Counter()
        return Counter(
            {(str(Path(file).relative_to(ROOT)), name): num for (file, name), num in taken.items()}
        )


@on_sqlite
def test_features_that_are_switched_off_are_not_called(producer: Cluster) -> None:
    calls = Calls()
    contracts = [
        GenerateContract.parse({"text": f"gulls cry {number}", "max_new_tokens": 3})
        for number in range(NUM_JOBS)
    ]
    threading.setprofile(calls.see)
    try:
        cache, guards = CacheSettings(enabled=False), {"enabled": False}
        with serving(producer, cache, guards=guards) as served:
            served.run(contracts)  # what is made once is made
            calls.taken()
            job_ids = served.run(contracts)
            counts = calls.taken()
            served.outputs(job_ids)
    finally:
        threading.setprofile(None)  # type: ignore[arg-type]
    assert counts["worker/attempts/attempt.py", "Attempt.start"] == NUM_JOBS, "they are counted"
    of_jobs = {
        (file, name): num / NUM_JOBS
        for (file, name), num in counts.items()
        if file.startswith(SWITCHED_ON) and num >= NUM_JOBS
    }
    assert {name.removeprefix("SealedText."): num for (_, name), num in of_jobs.items()} == PER_JOB
    # The model card, which every result has, is written out once for all of them.
    assert counts["engine/protocol/model_card.py", "ModelCard.to_json"] == 0
    assert counts["db/queries/model_cards.py", "model_card_id"] < 1.5 * NUM_JOBS
