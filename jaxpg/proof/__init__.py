"""Proof that jaxpg and torch_ref compute the same; numpy only, but for what names a framework."""
