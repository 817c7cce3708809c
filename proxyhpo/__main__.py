"""``python -m proxyhpo``: see :mod:`proxyhpo.runner`."""

import sys

from proxyhpo.runner import main

sys.exit(main())
