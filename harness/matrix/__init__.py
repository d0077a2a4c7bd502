# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs every combination of the axes and keeps the results. Plan, workers and results only communicate through files,
so that another engine can replace any of them."""
