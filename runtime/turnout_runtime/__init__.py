"""Code with I/O or tasks that the services share. Code that only computes belongs into the core, which stays pure."""
