# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory devices as the model sees them: what QEMU holds, and what each driver does with it.

One module for each kind of device; all that are in this folder are known.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
    importlib.import_module(_module.name)
