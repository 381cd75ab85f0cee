"""Segments are read in pages: the requested positions of each job, by the index."""

from sqlalchemy import insert, text

from db.models import Segment
from db.queries.jobs.segments import segments_between
from db.session import Database
from tests.running.workers import on_sqlite
from tests.samples.jobs import insert_job


def test_a_page_of_each_of_several_jobs_is_one_statement(database: Database) -> None:
    one, other = insert_job(database), insert_job(database)
    rows = [
        {"job_id": job_id, "position": position, "output": {"of": position}}
        for job_id in (one, other)
        for position in range(40)
    ]
    with database.write() as session:
        session.execute(insert(Segment), rows)
    with database.read() as session:
        found = session.execute(segments_between([(one, 0, 2), (other, 38, 60)])).all()
    assert sorted((job_id, position) for job_id, position, _ in found) == sorted(
        [(one, 0), (one, 1), (other, 38), (other, 39)]
    )
    assert {output["of"] for _, _, output in found} == {0, 1, 38, 39}


@on_sqlite  # PostgreSQL's planner scans a small table
def test_a_page_is_found_by_the_index_and_nothing_else_is_read(database: Database) -> None:
    statement = segments_between([(insert_job(database), 0, 2)])
    sql = statement.compile(database.engine, compile_kwargs={"render_postcompile": True})
    with database.engine.connect() as connection:
        plan = connection.execute(text(f"EXPLAIN QUERY PLAN {sql}".replace("?", "0"))).all()
    assert any("job_id=? AND position>? AND position<?" in row.detail for row in plan), plan
