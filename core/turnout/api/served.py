"""Names that clients put into the field `model` of a request."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import Field

from turnout.api.rules import Rule

_PATTERN: Final = "^[A-Za-z0-9]([A-Za-z0-9._:-]{0,94}[A-Za-z0-9])?$"
_NAME = re.compile(_PATTERN)

ServedName = Annotated[str, Field(max_length=128)]
"""One such name. Its form is checked by `SERVED_NAMES` on the list, whose message says what a name looks like."""

SERVED_NAMES: Final = Rule(
    f"self.all(n, n.matches('{_PATTERN}'))",
    "a name has 1 to 96 letters, digits, '.', '_', ':' or '-' and begins and ends with a letter or digit, such as llama-3.1-8b",
    lambda names: all(_NAME.fullmatch(name) is not None for name in names),
)

LoneName = Annotated[
    str,
    Field(max_length=128),
    Rule(
        f"self.matches('{_PATTERN}')",
        SERVED_NAMES.message,
        lambda name: _NAME.fullmatch(name) is not None,
    ),
]
"""One such name that stands by itself."""

CallableName = Annotated[str, Field(min_length=1, max_length=128)]
"""What a client may ask for: a served name, or `NAMESPACE/NAME` of a deployment."""
