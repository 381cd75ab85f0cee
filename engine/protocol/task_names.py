"""The names of the tasks, in the one place that engine, worker, producers and commands read."""

from typing import Literal, get_args

TaskName = Literal["summarize", "translate", "generate", "chat"]
TASK_NAMES: tuple[TaskName, ...] = get_args(TaskName)
