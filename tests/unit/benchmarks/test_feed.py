from dataclasses import replace

import pytest

from benchmarks.engine.job import Job
from benchmarks.engine.through.feed import serve
from benchmarks.engine.workload import drawn, stratified

JOB = Job(folder="", how="", requests=drawn(20, 1000), rows=4, num_waiting=6)


class Steps:
    """Serves a token of each of four rows in a step, oldest first, and notes who waits."""

    def __init__(self, job):
        self.job = job
        self.waiting = []
        self.running = {}
        self.fewest_waiting = 10**9
        self.num_steps = self.num_rows = self.num_submitted = 0

    def submit(self, numbers):
        for number in numbers:
            self.waiting.append((self.num_submitted, number))
            self.num_submitted += 1

    def finished(self):
        done = []
        while not done:
            while self.waiting and len(self.running) < self.job.rows:
                id_, number = self.waiting.pop(0)
                self.running[id_] = (number, self.job.requests[number].num_new)
            self.fewest_waiting = min(self.fewest_waiting, len(self.waiting))
            self.num_steps += 1
            self.num_rows += len(self.running)
            for id_, (number, num_left) in list(self.running.items()):
                self.running[id_] = (number, num_left - 1)
                if num_left == 1:
                    del self.running[id_]
                    done.append((number, [7] * self.job.requests[number].num_new))
        return done

    def cpu_seconds(self):
        return 0.0

    def steps(self):
        return self.num_steps, self.num_rows


def test_a_drain_serves_each_request_once():
    server = Steps(JOB)

    measured = serve(server, JOB)

    assert server.num_submitted == measured.num_requests == len(JOB.requests)
    assert measured.num_tokens == sum(each.num_new for each in JOB.requests)
    assert measured.occupancy == pytest.approx(server.num_rows / server.num_steps / JOB.rows)


def test_in_a_steady_feed_as_many_wait_at_all_times():
    server = Steps(JOB)

    measured = serve(server, replace(JOB, feed="steady"))

    assert measured.num_requests >= len(JOB.requests)
    assert measured.occupancy == 1.0
    # Between a finish and the next submission, rows are filled with waiting requests.
    assert server.fewest_waiting >= JOB.num_waiting - JOB.rows


def test_a_server_that_gives_another_length_is_not_measured():
    class Lazy(Steps):
        def finished(self):
            return [(number, tokens[:-1]) for number, tokens in super().finished()]

    with pytest.raises(AssertionError):
        serve(Lazy(JOB), JOB)


def test_a_sample_has_answers_of_all_lengths():
    requests = drawn(256, 1000)

    def mean(numbers):
        return sum(requests[each].num_new for each in numbers) / len(numbers)

    sample = stratified(requests, 16)

    assert len(set(sample)) == 16
    assert mean(sample) == pytest.approx(mean(range(256)), rel=0.05)
