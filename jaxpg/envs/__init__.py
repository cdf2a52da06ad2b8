"""Environments of other suites, an adapter each; and the contract that any must keep."""
