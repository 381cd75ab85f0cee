"""Estimates a source: the rows that its parser accepts, and those that it refuses."""

import typer

from cli.estimate.estimate import Estimate, estimated
from cli.estimate.sentences import estimate_lines
from cli.ingest.enqueue import Complaints
from cli.ingest.formats.suffixes import emptiness_of
from cli.ingest.row_parsing import RowParser
from cli.output.terminal import err, plural, say, warn, write_json
from tasks.configuration import settings
from tasks.configuration.catalog import Catalog


def estimate_source(
    parser: RowParser, catalog: Catalog, complaints: Complaints, as_json: bool
) -> None:
    """Read everything and print the estimate; status 1 if a row or source is bad."""
    with complaints.opened(parser.parts), err.status("reading"):
        estimate = estimated(settings.database(), catalog, parser.contracts())
    say_estimate(estimate, as_json, parser.num_bad)
    for fault in (*parser.failures, *map(emptiness_of, parser.empty)):
        warn(fault)
    if parser.num_bad or not parser.is_complete:
        raise typer.Exit(1)


def say_estimate(estimate: Estimate, as_json: bool, num_bad: int = 0) -> None:
    if as_json:
        write_json({**estimate.as_json, "num_bad": num_bad})
        return
    for line in estimate_lines(estimate):
        say(line)
    bad = f", {plural(num_bad, 'row')} would be left out" if num_bad else ""
    say(f"nothing was enqueued{bad}")
