"""The interface of a port to its connections."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Final, Protocol

from turnout_router.http1.accounts import Accounts

if TYPE_CHECKING:
    from turnout_router.http1.response import Handler
    from turnout_router.settings import ClientLimits
    from turnout_router.tasks import Note


class Member(Protocol):
    """One that counts as a connection."""

    @property
    def is_busy(self) -> bool:
        """Whether a request is being served on it."""

    @property
    def is_idle(self) -> bool:
        """Whether it can be closed without loss."""

    def evict(self) -> None:
        """Close it at once."""


class ServedMember(Member, Protocol):
    """A connection whose requests are served."""

    def drain(self) -> None:
        """Close once the present request is answered."""

    def cut(self) -> None:
        """End now, with an answer if one can still be sent."""

    def abort(self) -> None:
        """Drop the connection."""

    def check_deadlines(self, now: float) -> None:
        """Act on what has taken too long."""


class Host(ABC):
    """A port. *note* is called with what was raised where nothing should have been."""

    def __init__(self, handler: Handler, limits: ClientLimits, note: Note) -> None:
        self.handler = handler
        self.limits: Final = limits
        self.note: Final = note
        self.accounts: Final = Accounts(limits.bodies_bytes, limits.small_body_bytes)
        self.connections: set[ServedMember] = set()
        self.draining = False
        """Whether it is shutting down: each answer is its connection's last one."""

    @abstractmethod
    def admit(self, address: str, member: Member) -> bool:
        """Count *member*, which comes from *address*, until it is let go. Say whether there is room for it."""

    @abstractmethod
    def forget(self, address: str, connection: ServedMember) -> None:
        """Let go of a connection that has ended."""

    @abstractmethod
    def admit_handshake(self, address: str, handshake: Member) -> bool:
        """Count *handshake* until it is over. Say whether there is room for it."""

    @abstractmethod
    def end_handshake(self, address: str, handshake: Member) -> None:
        """Count *handshake* no longer."""
