// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Every type whose layout memhp reads in guest memory. harness/artifacts/layouts.py compiles this file as one of the
 * kernel's own, so that BTF describes them even if the kernel was built without debug info.
 */
#include <linux/device.h>
#include <linux/ioport.h>
#include <linux/memory.h>
#include <linux/mm.h>
#include <linux/mmzone.h>
#include <linux/node.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/vmstat.h>
#include <linux/xarray.h>

struct {
	struct resource *resource;
	struct memory_block *memory_block;
	struct node *node;
	struct xa_node *xa_node;
	struct task_struct *task_struct;
	struct mm_struct *mm_struct;
	struct page *page;
	struct mem_section *mem_section;
	struct pglist_data *pglist_data;
	struct zone *zone;
	struct per_cpu_zonestat *per_cpu_zonestat;
	struct per_cpu_nodestat *per_cpu_nodestat;
	enum zone_type zone_type;
	enum zone_stat_item zone_stat_item;
	enum node_stat_item node_stat_item;
	enum vm_event_item vm_event_item;
} memhp_layouts;
