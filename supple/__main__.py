"""``python -m supple``, also under torchrun."""

import sys

from supple.cli import main

sys.exit(main())
