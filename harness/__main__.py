# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m harness`` is ``memhp``."""

from __future__ import annotations

import sys

from harness.cli import main

if __name__ == "__main__":
    sys.exit(main())
