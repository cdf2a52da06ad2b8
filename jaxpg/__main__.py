"""`python -m jaxpg` is the `jaxpg` command."""

from jaxpg.cli.main import main

main()
