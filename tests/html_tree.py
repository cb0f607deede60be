"""An HTML page as a tree, for tests that look things up in it."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img", "wbr", "line", "input", "circle"}


class Element:
    def __init__(self, tag: str, attributes: dict[str, str]):
        self.tag, self.attributes = tag, attributes
        self.children: list[Element | str] = []

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    @property
    def classes(self) -> list[str]:
        return (self.attributes.get("class") or "").split()

    def all(self, tag: str = "", cls: str = "", **attributes: str) -> list[Element]:
        """Descendants of a tag and class with these attributes, in the page's order."""
        found = []
        for child in self.children:
            if isinstance(child, Element):
                fits = tag in ("", child.tag) and (not cls or cls in child.classes)
                if fits and all(child.attributes.get(key) == value for key, value in attributes.items()):
                    found.append(child)
                found += child.all(tag, cls, **attributes)
        return found


class Tree(HTMLParser):
    """A page as a tree; a tag that is closed wrongly fails the test."""

    def __init__(self, page: str):
        super().__init__()
        self.root = Element("", {})
        self.open = [self.root]
        self.feed(page)
        assert self.open == [self.root], f"not closed: {[element.tag for element in self.open]}"

    def handle_starttag(self, tag, attrs):
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop().tag == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.open[-1].children.append(data)
