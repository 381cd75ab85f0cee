"""Every statement that changes a job, each a named function in the module of its subject.

A change of state carries its condition, so running a statement twice, or too
late, changes nothing. What a worker runs all the time is built once (`cache`):
to SQLAlchemy building a statement is as much work as running it.
"""
