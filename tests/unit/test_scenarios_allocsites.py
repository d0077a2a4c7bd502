# SPDX-License-Identifier: GPL-2.0-or-later
"""Functions whose allocated objects grow by the same number in each round."""

from __future__ import annotations

from fractions import Fraction

from harness.parsers.alloctraces import parse_alloc_traces
from harness.scenarios.soak import steady_growth, unread_sites

#: from a 7.3 guest with slab_debug=U: two caches, one of them without objects
TRACES = """\
     16 create_memory_block_devices+0x124/0x2a8 age=1052/1098/1144 pid=9 cpus=0
        create_memory_block_devices+0x124/0x2a8
        add_memory_resource+0x1cc/0x2d0

      8 memory_dev_init+0x8c/0x128 age=4294 pid=1 cpus=0
No data
      2 virtnet_probe+0x10/0x20 [virtio_net] waste=48/24 age=4294 pid=1-7 cpus=0-1
      3 create_memory_block_devices+0x80/0x2a8 age=12 pid=9 cpus=1
      1 <not-available> age=1 pid=0
"""


def test_objects_are_counted_by_the_function_that_allocated_them() -> None:
    assert parse_alloc_traces(TRACES) == {"create_memory_block_devices": 19, "memory_dev_init": 8, "virtnet_probe": 2}


def test_what_grows_by_the_same_in_every_round_is_a_leak() -> None:
    rounds = [{"leaks": 40 + 16 * number, "rests": 7, "moves": 7 + number % 3} for number in range(8)]
    rounds[0]["leaks"] = 0  # the first round warms up
    (found,) = steady_growth(rounds)
    assert (found.name, found.each, found.leaks) == ("objects that leaks() allocated", Fraction(16), True)
    assert found.spelled == "16 objects a round"


def test_who_comes_late_or_loses_one_on_the_way_is_none() -> None:
    late = [{} if number < 4 else {"late": number} for number in range(10)]
    wobbles = [{"wobbles": 3 * number - (number == 6)} for number in range(10)]
    assert steady_growth(late) == steady_growth(wobbles) == ()


def test_a_few_rounds_prove_nothing() -> None:
    assert steady_growth([{"leaks": number} for number in range(6)]) == ()
    assert len(steady_growth([{"leaks": number} for number in range(7)])) == 1


def test_a_kernel_that_keeps_no_track() -> None:
    assert steady_growth([{}] * 12) == ()


def test_allocation_sites_that_some_rounds_could_not_read_are_told() -> None:
    grown = [{"f": number} for number in range(8)]
    assert steady_growth(grown)[0].each == 1
    # Without one round, the leak does not show.
    grown[4] = {}
    assert steady_growth(grown) == ()
    assert unread_sites(grown) == ["allocation sites were not read after round 5"]
    # A kernel that does not record them never has any; the first round only warms up.
    assert unread_sites([{}] * 8) == unread_sites([{}, *[{"f": 1}] * 7]) == []
