# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory devices in the model: what QEMU plugs, and what each driver does with it.

There is one module per kind of device; all modules of this folder are imported.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
    importlib.import_module(_module.name)
