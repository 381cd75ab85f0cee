"""Versions of the recipes: a number rises when the same job would ask for other requests.

What was computed for a job of another version is not taken for this one: neither a segment of
an earlier attempt nor an entry of the content cache.
"""

from engine.protocol.task_names import TaskName

RECIPE_VERSIONS: dict[TaskName, int] = {"summarize": 1, "translate": 1, "generate": 1, "chat": 1}
