# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's memory devices: the options that create one, and the parser of QEMU's report about it.

One module per kind of device; every module in this folder is loaded and registers its device.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__, prefix=f"{__name__}."):
    importlib.import_module(_module.name)
