"""Every statement that changes a job, each a named function in the module of its subject.

A change of state carries its condition, so a statement that runs twice or too late changes nothing.
Statements that a worker runs all the time are built once (`cache`): for SQLAlchemy, building a
statement is as much work as running it.
"""
