"""The plotting library as a script: its text, and what has to be in a page for it to load under a strict policy."""

import re
from functools import lru_cache

from plotly.offline import get_plotlyjs

_ADDED_STYLE = re.compile(r'getElementById\("([0-9a-f]{64})"\)')


@lru_cache(maxsize=1)
def script() -> str:
    """plotly.js, minified, as installed with the Python package (about 5 MB)."""
    return str(get_plotlyjs())


@lru_cache(maxsize=1)
def added_style_ids() -> tuple[str, ...]:
    """Ids of the style elements that the script adds while loading, unless an element of that id is there.

    They are for maps, which we do not draw; a strict policy refuses them with an error in the console. Templates put an
    empty element of each id into the page instead.
    """
    return tuple(dict.fromkeys(_ADDED_STYLE.findall(script())))
