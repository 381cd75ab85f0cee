"""docs/architecture.md names each room once, and no other."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()
PACKAGES = ("cli", "db", "engine", "tasks", "worker")


def test_each_room_is_described_once() -> None:
    described = re.findall(r"^\| `([^`]+)/` \|", PAGE, re.MULTILINE)
    rooms = {
        path.parent.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in ROOT.joinpath(package).rglob("*.py")
        if path.parent.name != "versions"
    }
    assert sorted(described) == sorted(rooms)


def test_every_file_that_the_page_names_is_there() -> None:
    files = [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py")]
    named = re.findall(r"`([\w/]+\.py)`", PAGE)
    assert named
    assert not [
        name for name in named if not any(f"/{file}".endswith(f"/{name}") for file in files)
    ]
