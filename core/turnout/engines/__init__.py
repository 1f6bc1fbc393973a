"""What differs from one engine to another, as far as a router has to know it: one profile per engine, pure."""

from turnout.engines.profile import PROFILES, EngineProfile, HandOffProtocol, RoutedEngine

__all__ = ["PROFILES", "EngineProfile", "HandOffProtocol", "RoutedEngine"]
