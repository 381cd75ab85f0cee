"""The worker's heap: the garbage collector leaves alone what is there when work begins."""

import gc
from typing import Any

from celery.signals import worker_ready


@worker_ready.connect
def leave_alone_what_stays(**_: Any) -> None:
    # Modules and their like, 140,000 objects, of which next to none ever becomes garbage. To go
    # through them all takes 70 to 90 ms now and then, and every thread here waits meanwhile.
    gc.freeze()
