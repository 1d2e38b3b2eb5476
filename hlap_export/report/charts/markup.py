"""SVG as text: elements with escaped text and short numbers."""

from __future__ import annotations

from html import escape

Attribute = str | float


def element(name: str, /, *children: str, **attributes: Attribute) -> str:
    """One element: `element("rect", x=1, class_="dense")`; children are markup already.

    A trailing underscore of an attribute's name is dropped, the others become hyphens.
    """
    written = "".join(f' {_attribute(key)}="{_value(value)}"' for key, value in attributes.items())
    return f"<{name}{written}>{''.join(children)}</{name}>" if children else f"<{name}{written}/>"


def words(text: str, x: float, y: float, /, **attributes: Attribute) -> str:
    """Text at a point, its baseline at `y`."""
    return element("text", escape(text), x=x, y=y, **attributes)


def hint(text: str) -> str:
    """What appears when the pointer rests on the element that holds this."""
    return element("title", escape(text))


def picture(width: float, height: float, /, *children: str, label: str, **attributes: Attribute) -> str:
    """A whole picture; `label` says what it shows to who can't see it."""
    return element(
        "svg",
        *children,
        viewBox=f"0 0 {_number(width)} {_number(height)}",
        role="img",
        aria_label=label,
        **attributes,
    )


def _attribute(name: str) -> str:
    return name.removesuffix("_").replace("_", "-")


def _value(value: Attribute) -> str:
    return escape(value) if isinstance(value, str) else _number(value)


def _number(value: float) -> str:
    """Two decimals are a hundredth of a pixel: enough."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
