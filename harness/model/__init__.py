# SPDX-License-Identifier: GPL-2.0-or-later
"""The reference model: what a guest's memory must look like after everything that was done to it."""

# What is done to a device is an action that its module knows.
from harness.model import devices

__all__ = ["devices"]
