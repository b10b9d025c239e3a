"""Colours for light and dark, as CSS variables: the charts follow the theme without being drawn again.

Categories are the eight colours of Okabe and Ito, "Color Universal Design", 2008, which stay apart for every kind of
colour vision; where a value has a name, a letter or a shape says it as well. Values use cividis (Nuñez et al., 2018).
"""

from collections.abc import Iterable, Sequence

from esper_ray.lifecycle import SeedStage

_ORANGE, _SKY, _GREEN, _YELLOW = "#e69f00", "#56b4e9", "#009e73", "#f0e442"
_BLUE, _VERMILLION, _PURPLE = "#0072b2", "#d55e00", "#cc79a7"

STAGE_COLOURS = {
    SeedStage.GERMINATED: _YELLOW,
    SeedStage.TRAINING: _ORANGE,
    SeedStage.BLENDING: _SKY,
    SeedStage.SHADOWING: _BLUE,
    SeedStage.PROBATIONARY: _PURPLE,
    SeedStage.FOSSILIZED: _GREEN,
    SeedStage.CULLED: _VERMILLION,
}
"""Colours of the stages in which there is a seed; the empty slot is grey."""

CATEGORIES = (_SKY, _BLUE, _ORANGE, _YELLOW, _PURPLE)
"""For names without a colour of their own, such as blueprints; FOSSILIZE and CULL have those of their stages."""

SEQUENCE = ("#00306e", "#39486b", "#575d6d", "#737478", "#928c78", "#b4a76e", "#dac55f", "#fee838")
"""Cividis in eight steps, from low to high."""

LIGHT = {
    "page": "#f6f7f9",
    "surface": "#ffffff",
    "ink": "#15202b",
    "ink-2": "#4a5763",
    "line": "#d9dee4",
    "grid": "#e8ebef",
    "accent": "#005a8f",
    "good": "#00664a",
    "bad": "#a63c00",
    "notice": "#fff4d6",
    "learned": _BLUE,
    "baseline": _VERMILLION,
    "second": "#6b2c00",
    "third": "#7b3294",
    "band": "rgba(0,114,178,.20)",
    "band-2": "rgba(0,114,178,.10)",
    "empty": "#eef1f4",
    "embargo": "#b8c0c8",
}
"""Light theme: name → colour. `ink` and `ink-2` are text; `accent`, `good` and `bad` are text as well."""

DARK = {
    "page": "#0f151b",
    "surface": "#18212a",
    "ink": "#eef2f5",
    "ink-2": "#b3bfca",
    "line": "#34414d",
    "grid": "#2a3641",
    "accent": "#7cc4f4",
    "good": "#4fd1a5",
    "bad": "#ff9a62",
    "notice": "#3a3114",
    "learned": _SKY,
    "baseline": "#ff8a3d",
    "second": "#f0e442",
    "third": "#d060a0",
    "band": "rgba(86,180,233,.26)",
    "band-2": "rgba(86,180,233,.13)",
    "empty": "#2c3843",
    "embargo": "#b8c0c8",
}
"""Dark theme, with the same names."""


def _shared() -> dict[str, str]:
    stages = {f"stage-{stage.name.lower()}": colour for stage, colour in STAGE_COLOURS.items()}
    categories = {f"cat-{i}": colour for i, colour in enumerate(CATEGORIES)}
    return stages | categories | {f"seq-{i}": colour for i, colour in enumerate(SEQUENCE)}


def theme(dark: bool) -> dict[str, str]:
    """Returns every CSS variable of a theme, without its two dashes → colour."""
    own = DARK if dark else LIGHT
    empty = {f"stage-{stage.name.lower()}": own["empty"] for stage in (SeedStage.UNKNOWN, SeedStage.DORMANT)}
    resting = {f"stage-{stage.name.lower()}": own["embargo"] for stage in (SeedStage.EMBARGOED, SeedStage.RESETTING)}
    lifted = {"seq-0": "#17427f"} if dark else {}  # the dark end of cividis would sink into a dark page
    return own | _shared() | empty | resting | lifted


def css_variables(dark: bool) -> str:
    """Returns the theme as CSS declarations."""
    return "".join(f"--{name}:{colour};" for name, colour in theme(dark).items())


def var(name: str) -> str:
    """Returns the CSS expression for a colour of the theme."""
    return f"var(--{name})"


def stage_var(stage: str) -> str:
    """Returns the CSS expression for the colour of a stage."""
    return var(f"stage-{stage.lower()}")


def action_vars(actions: Sequence[str]) -> dict[str, str]:
    """Returns action → CSS expression; blueprints beyond the fifth share the grey of `embargo`."""
    colours, free = {}, iter(range(len(CATEGORIES)))
    for action in actions:
        if action in ("FOSSILIZE", "CULL"):
            colours[action] = stage_var("FOSSILIZED" if action == "FOSSILIZE" else "CULLED")
        elif action != "WAIT":
            index = next(free, None)
            colours[action] = var("embargo" if index is None else f"cat-{index}")
    return colours


def resolved(text: str, dark: bool = False) -> str:
    """Returns `text` with every `var(--name)` replaced by its colour, for pictures that know no CSS."""
    for name, colour in theme(dark).items():
        text = text.replace(var(name), colour)
    return text


def luminance(colour: str) -> float:
    """Returns the relative luminance of "#rrggbb", as WCAG 2.2 defines it."""
    red, green, blue = linear(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    """Returns the contrast ratio of two colours, 1 to 21 (WCAG 2.2)."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def linear(colour: str) -> tuple[float, float, float]:
    """Returns "#rrggbb" as linear-light red, green and blue, 0 to 1."""
    parts = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return red, green, blue


def legend(entries: Iterable[tuple[str, str]], shape: str = "box") -> list[dict[str, str]]:
    """Returns a legend's entries for the page: label, CSS colour and shape (box, line, dash or dot)."""
    return [{"label": label, "colour": colour, "shape": shape} for label, colour in entries]
