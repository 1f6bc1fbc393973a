"""What hardware and models are: accelerators, model architectures, and the arithmetic between them."""
