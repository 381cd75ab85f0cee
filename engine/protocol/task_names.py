"""The names of the tasks, for engine, worker, producers and commands."""

from typing import Literal, get_args

TaskName = Literal["summarize", "translate", "generate", "chat"]
TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)
