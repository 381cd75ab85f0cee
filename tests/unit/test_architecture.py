"""The page on the architecture has each module, once, and none that is not there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
NO_PART = {"__init__.py", "__main__.py", "__pycache__"}


def described(package: str) -> list[str]:
    """What the first column of a package's table names."""
    _, _, after = PAGE.partition(f"\n`{package}` — ")
    table = after.partition("\n\n")[2].partition("\n\n")[0]
    cells = [row.split("|")[1] for row in table.splitlines()]
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def parts(package: str) -> set[str]:
    """The modules of a package, and the packages in it with a slash."""
    folder = ROOT / package
    modules = {path.name for path in folder.glob("*.py")}
    packages = {f"{path.name}/" for path in folder.iterdir() if any(path.glob("*.py"))}
    # It has a table of its own.
    return modules - NO_PART | packages - {"engine/"}


@pytest.mark.parametrize("package", ["db", "tasks", "worker", "worker/engine", "cli"])
def test_each_module_is_described_once(package: str) -> None:
    assert sorted(described(package)) == sorted(parts(package))
