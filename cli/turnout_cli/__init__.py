"""The user's command line: ``turnout``."""
