# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory devices as QEMU has them: what it is told to make one, and what it tells of one.

One module for each kind of device; all that are in this folder are known.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
    importlib.import_module(_module.name)
