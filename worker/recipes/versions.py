"""Recipe versions: a number rises when the same job would make other requests.

Outputs of another version are not reused, neither segments of an earlier attempt nor entries of the
content cache.
"""

from engine.protocol.task_names import TaskName

RECIPE_VERSIONS: dict[TaskName, int] = {"summarize": 1, "translate": 2, "generate": 1, "chat": 1}
