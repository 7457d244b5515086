"""Take a page apart, and fail if it is not self-contained."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []
        assert "script" not in {tag for tag, _ in self.tags}
        for _, attributes in self.tags:
            assert not any(name.startswith("on") for name in attributes)
            assert (attributes.get("href") or "#").startswith("#")
            assert (attributes.get("src") or "data:image/jpeg;").startswith("data:image/jpeg;")
        assert "url(" not in html
        assert "@import" not in html
        assert "default-src 'none'" in html

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "input", "meta", "wbr"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def pictures(self) -> list[str]:
        """Sources of the page's pictures."""
        return [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]

    def count(self, tag: str, css: str | None = None) -> int:
        return sum(found == tag and css in (None, attributes.get("class")) for found, attributes in self.tags)
