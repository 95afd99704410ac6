"""The pages for people: as wide as the code, and no link of theirs leads nowhere."""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "README.md", *ROOT.glob("docs/*.md")]
WIDTH = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]["line-length"]

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Its lines with their numbers, save those of code and of tables, which cannot be wrapped."""
    fenced = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = line.lstrip().startswith("```")
        if not (fenced or fence or line.startswith("|")):
            yield number, line
        fenced ^= fence
    assert not fenced, "a block of code that does not end"


@pages
def test_no_line_is_wider_than_the_code(page: Path) -> None:
    assert [(number, len(line)) for number, line in prose(page) if len(line) > WIDTH] == []


@pages
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []
