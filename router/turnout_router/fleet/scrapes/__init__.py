"""What workers say of themselves: their metrics, read now and then, so that a router learns what others sent there."""
