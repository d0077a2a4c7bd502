# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of the oracle: a sound state is corrupted on purpose, and the right invariant must name the corruption."""
