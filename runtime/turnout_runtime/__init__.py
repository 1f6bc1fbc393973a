"""What the services share that does I/O or runs tasks. The core stays pure: what only computes belongs there."""
