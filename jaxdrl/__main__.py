"""`python -m jaxdrl ...` is the same as `jaxdrl ...`."""

import sys

from jaxdrl.cli import main

sys.exit(main())
