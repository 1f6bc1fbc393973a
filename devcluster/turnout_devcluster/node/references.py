"""Names inside texts: ``$(VAR)`` as Kubernetes expands it, and paths under mounts as this node moves them.

A mountPath is one path for the whole machine, but every container wants a folder of its own there. So
what a container mounts at /etc/app lies at ``$TURNOUT_POD_ROOT/etc/app``, and wherever an argument or
a variable's value names /etc/app as a whole path (at its start, or after one of ``= : , ;``, a quote,
a bracket, a redirection or a blank), that is rewritten. ``--config=/etc/app/config.yaml`` just works; a
path that a program has built in does not, and such a program needs the path as an option.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")


def expand(text: str, variables: Mapping[str, str]) -> str:
    """Replace ``$(NAME)`` by the variable's value and ``$$`` by ``$``; unknown names stay as they are.

    Rules: https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/
    """

    def value(match: re.Match[str]) -> str:
        if match[1] is None:
            return "$"
        return variables.get(match[1], match[0])

    return _REFERENCE.sub(value, text)


@dataclass(frozen=True, slots=True)
class Rewriter:
    """Moves paths under *mount_paths* below *root*."""

    root: str
    mount_paths: Sequence[str]

    def __call__(self, text: str) -> str:
        """Return *text* with every path under a mount moved."""
        if not self.mount_paths or "/" not in text:
            return text
        longest_first = sorted((p.rstrip("/") for p in self.mount_paths), key=len, reverse=True)
        pattern = (
            r"(^|[=:,;\s'\"<>()\[\]{}`])("
            + "|".join(map(re.escape, longest_first))
            + r")(?=$|[/:,;\s'\"<>()\[\]{}`&|])"
        )
        return re.sub(pattern, lambda match: f"{match[1]}{self.root}{match[2]}", text)
