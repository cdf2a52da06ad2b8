"""The `jaxpg` command: what is asked for, and what is said. jax is imported by what computes."""
