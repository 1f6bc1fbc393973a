"""What should be there, computed from what is: pure, like the core. Effects are carried out elsewhere."""
