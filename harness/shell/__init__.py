# SPDX-License-Identifier: GPL-2.0-or-later
"""The interactive prompt on a guest: ``memhp shell`` and ``memhp attach``."""
