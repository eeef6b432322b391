"""Every relative link of README, CONTRIBUTING, docs and benchmarks leads to a file, and to a heading that is there."""

import pytest

from tests.conftest import REPOSITORY
from tests.docs.pages import anchors, find_pages, links


@pytest.mark.parametrize("page", find_pages(), ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_every_link_leads_somewhere(page):
    broken = []
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_the_index_leads_to_every_page_of_docs():
    index = REPOSITORY / "docs/index.md"
    linked = {(index.parent / link.partition("#")[0]).resolve() for link in links(index)}
    assert [page for page in (REPOSITORY / "docs").glob("*.md") if page != index and page not in linked] == []


def test_what_is_broken_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A `b` c: d, e\n\n[a](other.md#x) ![b](c.png) `[no](link.md)`\n\n```sh\n[no](x.md)\n```\n## F\n## F\n"
    )
    assert links(page) == ["other.md#x", "c.png"]
    assert anchors(page) == {"a-b-c-d-e", "f", "f-1"}
