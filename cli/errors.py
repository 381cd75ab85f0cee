"""Errors that end a command, each with a sentence for the user.

TidemillError
└── CommandError
    ├── SourceUnusable      the file, folder or query cannot be read at all
    │   └── SourceEmpty     because there is nothing in it, not even columns
    ├── ColumnsUnfit        its columns are not fields of the task
    ├── BrokerUnreachable   nobody answers where Redis should be
    ├── AlreadyRunning      another `tidemill up` has this data folder
    ├── PartFailed          Valkey or the worker did not start, or ended by itself
    ├── NotFound            no job or batch by that name
    └── NotReproducible     a job cannot be run again to compare
"""

from tasks.errors import TidemillError


class CommandError(TidemillError):
    """The command cannot be carried out; the message says what to do."""


class SourceUnusable(CommandError):
    pass


class SourceEmpty(SourceUnusable):
    pass


class ColumnsUnfit(CommandError):
    pass


class BrokerUnreachable(CommandError):
    pass


class AlreadyRunning(CommandError):
    pass


class PartFailed(CommandError):
    pass


class NotFound(CommandError):
    pass


class NotReproducible(CommandError):
    """A job that cannot be run again for comparison, or whose second run gave no answer."""
