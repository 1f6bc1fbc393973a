"""What ends a demo before its time.

DemoError
├── MissingError   something that the demo needs is not there: a package, the chart, the examples
├── SetupError     a step of the setup failed or passed its deadline
└── ReadError      a component's answer could not be read
"""

from __future__ import annotations


class DemoError(Exception):
    """Base of what ends a demo. The message says what to look at."""


class MissingError(DemoError):
    """Something that the demo needs is not there."""


class SetupError(DemoError):
    """A step of the setup failed or passed its deadline."""


class ReadError(DemoError):
    """A component's answer could not be read."""
