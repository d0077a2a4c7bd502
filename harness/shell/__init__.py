# SPDX-License-Identifier: GPL-2.0-or-later
"""A person at a prompt, poking at a guest: ``memhp shell`` and ``memhp attach``."""
