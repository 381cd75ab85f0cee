"""A worker that is ready lets the collector look only at what it makes from then on."""

import gc

from celery.signals import worker_ready

import worker.celery.freeze_gc  # noqa: F401  (connects itself)


def test_what_was_loaded_before_a_worker_is_ready_is_collected_no_more() -> None:
    num_before = gc.get_freeze_count()
    try:
        worker_ready.send(sender=None)
        assert gc.get_freeze_count() > num_before
        assert len(gc.get_objects()) < gc.get_freeze_count()
    finally:
        gc.unfreeze()
