# SPDX-License-Identifier: GPL-2.0-or-later
"""The oracle tests itself: what is known to be sound is corrupted on purpose, and the right invariant must say so."""
