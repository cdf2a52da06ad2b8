"""Seeds × settings in fixed lanes on every device, and what a trained row is: a policy."""
