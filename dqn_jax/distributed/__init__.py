"""Ways of training one agent on many devices, workers or hosts."""
