"""The pages say what the code says: the table of errors, and links that lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mesh.errors import TABLE, Code

_ROOT = Path(__file__).parents[2]
_PAGES = [_ROOT / "README.md", *sorted((_ROOT / "docs").rglob("*.md"))]


def test_the_table_of_errors_is_the_one_in_the_code() -> None:
    page = (_ROOT / "docs/errors.md").read_text()
    shown = re.findall(r"^\| `(\w+)` \| (\d+) \| `(\w+)` \| (\w+) \| (\w+) \| (\w+) \| (.*) \|$", page, re.MULTILINE)
    wanted = [
        (code.value, str(row.http), row.type, row.grpc, row.reason, row.retry.value, row.message)
        for code, row in TABLE.items()
    ]
    assert sorted(shown) == sorted(wanted)
    assert {name for name, *_ in shown} == {code.value for code in Code}


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: str(page.relative_to(_ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_every_decision_has_a_number_of_its_own_and_says_the_price() -> None:
    pages = sorted((_ROOT / "docs/decisions").glob("*.md"))
    assert [page.name[:4] for page in pages] == [f"{i:04}" for i in range(1, len(pages) + 1)]
    for page in pages:
        assert page.read_text().startswith(f"# {int(page.name[:4])}. ")
        assert "**Decided.**" in page.read_text()
