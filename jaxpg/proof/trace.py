"""`python -m jaxpg.core.trace`, of the parts that users get on this machine: jaxpg.build's."""

import sys

from jaxpg import fast
from jaxpg.core import trace

if __name__ == "__main__":
    trace.main(sys.argv[1:], fast.build)
