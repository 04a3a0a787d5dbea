"""`python -m apr VERB`."""

import sys

from apr.cli.main import main

sys.exit(main())
