"""`turnout-worker serve`: the process that starts a real engine, watches it and ends it."""
