# SPDX-License-Identifier: GPL-2.0-or-later
"""Every combination of what can differ, run and kept: the plan, the workers and the results know of each other only
what stands in files, so that another engine can take the place of any of them."""
