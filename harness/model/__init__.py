# SPDX-License-Identifier: GPL-2.0-or-later
"""The reference model: the exact state of a guest's memory after a list of actions."""

# Each device's module defines the actions on it.
from harness.model import devices

__all__ = ["devices"]
