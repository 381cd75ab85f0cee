"""Leader: leader election by a row with a term, of which a part is trusted without asking."""

import logging
import math
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from db.queries.jobs import dispatch
from db.session import Database

log = logging.getLogger(__name__)

LEADERSHIP = "dispatcher"  # as in db.reading.health


class Leader:
    """A worker's candidacy. The package's docstring explains terms and the trust window."""

    def __init__(
        self, database: Database, owner: str, lead_seconds: float, clock: Callable[[], float]
    ) -> None:
        """clock: returns monotonic seconds"""
        self._database = database
        self._owner = owner
        self._lead_seconds = lead_seconds
        self._clock = clock
        self._led_at = -math.inf
        self.leads = False  # as of the last `keep`

    def keep(self) -> bool:
        """Take or keep the leadership. Returns whether this worker leads."""
        now = self._clock()
        if not self.leads or now >= self._led_at + self._lead_seconds / 4:
            with self._database.write() as session:
                self.leads = dispatch.lead(session, LEADERSHIP, self._owner, self._lead_seconds)
            self._led_at = now
        return self.leads

    def resign(self) -> None:
        """Give up the leadership. Never raises, even while the database is away."""
        self.leads = False
        try:
            with self._database.write() as session:
                session.execute(dispatch.resign(LEADERSHIP, self._owner))
        except SQLAlchemyError as error:
            log.warning("cannot resign", extra={"error": type(error).__name__})
