"""Estimators of public libraries, each held against jaxpg's on trajectories with every event."""
