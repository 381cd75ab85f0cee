"""`tidemill quality`: what it says of a day, of several, and to a cron line."""

from db.session import Database
from tests.running.commands import CommandLine
from tests.running.producers import FAKE, write_config
from tests.unit.db.reading.test_quality import finish


def test_quality_reports_a_day_of_refusals_as_changed_and_the_days_before_as_stable(
    stored: CommandLine,
) -> None:
    assert (stored("quality").out, stored("quality", "--check").status) == (
        "nothing to compare\n",
        0,
    )
    database = Database(stored.environment["TIDEMILL_DATABASE_URL"])
    finish(database, 80, 0.5, "succeeded", suspicions="refused", repetition=0.1)
    finish(database, 60, 1.5, "succeeded", repetition=0.1)
    finish(database, 120, 10, "succeeded", repetition=0.1)
    database.close()

    found = {each["signal"]: each for each in stored("quality", "--json").json}
    refused = found["refused"]
    assert (refused["verdict"], refused["reference"], refused["current"]) == ("changed", 0.0, 1.0)
    assert (refused["model"], refused["num_current"], refused["num_reference"]) == ("m", 80, 180)
    assert found["wrong_language"]["verdict"] == "stable"
    by_day = stored("quality", "--days", "2", "--json").json
    verdicts = [each["verdict"] for each in by_day if each["signal"] == "refused"]
    assert verdicts == ["stable", "changed"], "the oldest first"
    assert len({each["until"] for each in by_day}) == 2

    checked = stored("quality", "--check")
    assert checked.status == 1
    assert "refused" in checked.out
    write_config(stored.folder / "tidemill.toml", {"fake": FAKE})
    assert stored("quality", "--check", "--model", "fake").status == 0
    mistyped = stored("quality", "--check", "--model", "another")
    assert mistyped.status == 2, "a check of it would never raise an alarm"
    assert "'another' is no model" in mistyped.err
    assert stored("quality", "--hours", "inf").status == 2
