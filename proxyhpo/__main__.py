"""``python -m proxyhpo``: see :mod:`proxyhpo.cli`."""

import sys

from proxyhpo.cli import main

sys.exit(main())
