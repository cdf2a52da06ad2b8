"""How a machine computes the core's loops and products fastest."""
