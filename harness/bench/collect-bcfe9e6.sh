#!/usr/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0-or-later
# collect BOUNDARY SOURCE...: prints the named sources, one after another, between markers:
#   \n@@BOUNDARY begin NAME\n CONTENT \n@@BOUNDARY end NAME STATUS\n      and at last      \n@@BOUNDARY done COUNT\n
# STATUS is ok, missing, "failed WHY" or (dmesg) lost. harness/collect/frames.py reads it.
# shellcheck shell=dash

mark=$1
shift
run=/run/memhp
dump=/sys/kernel/debug/kernel_page_tables
count=0

begin() {
	printf '\n@@%s begin %s\n' "$mark" "$1"
}

end() {
	count=$((count + 1))
	printf '\n@@%s end %s %s\n' "$mark" "$1" "$2"
}

# file NAME PATH
file() {
	begin "$1"
	if [ ! -e "$2" ]; then
		end "$1" missing
	elif cat "$2" 2>$run/error; then
		end "$1" ok
	else
		read -r said <$run/error
		end "$1" "failed $said"
	fi
}

# The page tables take the kernel as long as everything else together: it walks them while the rest is read.
start_dump() {
	[ ! -e $dump ] || cat $dump >$run/dump 2>$run/dump-error &
}

# The other CPU must be idle again when something is counted.
end_dump() {
	wait
}

ptdump() {
	end_dump
	if [ ! -e $dump ]; then
		begin ptdump
		end ptdump missing
	elif [ -s $run/dump-error ]; then
		begin ptdump
		read -r said <$run/dump-error
		end ptdump "failed $said"
	else
		file ptdump $run/dump
		: >$run/dump
	fi
}

# line NAME PATH: a file of one line, without a process
line() {
	begin "$1"
	if read -r said <"$2"; then
		echo "$said"
		end "$1" ok
	else
		end "$1" missing
	fi 2>/dev/null
}

# start_of NAME PATH BYTES
start_of() {
	begin "$1"
	if [ ! -e "$2" ]; then
		end "$1" missing
	elif head -c "$3" "$2" 2>$run/error; then
		end "$1" ok
	else
		read -r said <$run/error
		end "$1" "failed $said"
	fi
}

blocks() {
	begin blocks
	if ! cd /sys/devices/system/memory 2>/dev/null; then
		end blocks missing
		return
	fi
	grep -sH '' memory[0-9]*/state memory[0-9]*/phys_index memory[0-9]*/removable memory[0-9]*/valid_zones
	for link in memory[0-9]*/node[0-9]*; do
		[ ! -e "$link" ] || echo "${link%%/*}/node:${link##*/node}"
	done
	end blocks ok
}

dax() {
	begin dax
	if ! cd /sys/bus/dax/devices 2>/dev/null; then
		end dax missing
		return
	fi
	set -- dax*
	[ ! -e "$1" ] || grep -sH '' dax*/resource dax*/size dax*/align dax*/target_node
	for device in "$@"; do
		! cd -P "/sys/bus/dax/devices/$device/driver" 2>/dev/null || echo "$device/driver:${PWD##*/}"
	done
	end dax ok
}

# Sets newest to the number of the newest process
newest() {
	read -r _ _ _ _ newest </proc/loadavg
}

# What processes hold and what the kernel counts must fit together, so one process reads both, and again if its own
# page tables grew meanwhile or another process was made. Between them it reads stat_refresh, which folds in the counters
# that wait per CPU (vmstat_refresh, mm/vmstat.c). It writes to a file, since a pipe would have the SSH server at work,
# and its page tables with it, in the middle of the count.
counters() {
	end_dump
	{
		end status ok
		begin vmstat
	} >$run/between
	echo again >$run/again
	begin status
	tries=20
	until [ $tries = 0 ]; do
		newest
		before=$newest
		# The list of processes is made before grep is one of them, so it names itself.
		grep -shE '^(Name|VmPTE):|^[^:]*$' /proc/[0-9]*/status /proc/self/status $run/between \
			/proc/sys/vm/stat_refresh /proc/vmstat $run/again /proc/self/status >$run/counters
		newest
		# grep is a new one itself.
		[ "$newest" != $((before + 1)) ] ||
			! awk '/^VmPTE:/ { before = last; last = $2 } END { exit before != last }' $run/counters || break
		tries=$((tries - 1))
	done
	if [ $tries = 0 ]; then
		sed "/^again\$/,\$d; s/^\(@@$mark end status\) ok\$/\1 failed processes come and go while they are counted/" \
			$run/counters
	else
		sed '/^again$/,$d' $run/counters
	fi
	end vmstat ok
}

# Lines that are newer than the newest one of the last time; lost if the log's oldest line is newer than that, too.
kernel_log() {
	begin dmesg
	if [ ! -e /dev/kmsg ]; then
		end dmesg missing
		return
	fi
	since=
	[ ! -e $run/since ] || read -r since <$run/since
	dmesg -r | awk -F '[][]' -v since="$since" -v keep=$run/since '
		/^<[0-9]+>\[ *[0-9]+\.[0-9]+\]/ {
			if (NR == 1 && $2 + 0 > since + 0)
				lost = 1
			last = $2
			fresh = since == "" || last + 0 > since + 0
		}
		fresh
		END {
			print last > keep
			exit lost
		}'
	case $? in
	0) end dmesg ok ;;
	*) end dmesg lost ;;
	esac
}

parameters() {
	begin parameters
	cd /sys/module 2>/dev/null || {
		end parameters missing
		return
	}
	for module in memory_hotplug virtio_mem kmem device_dax dax_pmem nd_pmem libnvdimm printk page_reporting shuffle; do
		set -- $module/parameters/*
		[ ! -e "$1" ] || grep -sH '' "$@"
	done
	end parameters ok
}

config() {
	read -r release </proc/sys/kernel/osrelease
	for path in /proc/config.gz "/boot/config-$release" "/lib/modules/$release/config"; do
		[ ! -e "$path" ] || break
	done
	file config "$path"
}

mkdir -p $run
case " $* " in
*" ptdump "*) start_dump ;;
esac
for source in "$@"; do
	case $source in
	boot_id) line boot_id /proc/sys/kernel/random/boot_id ;;
	uptime) line uptime /proc/uptime ;;
	iomem | meminfo | zoneinfo | slabinfo | cmdline) file "$source" "/proc/$source" ;;
	blocks | dax | counters | parameters | config | ptdump) $source ;;
	auto_online) line auto_online /sys/devices/system/memory/auto_online_blocks ;;
	dmesg) kernel_log ;;
	release) line release /proc/sys/kernel/osrelease ;;
	auxv) file auxv /proc/self/auxv ;;
	block_size) line block_size /sys/devices/system/memory/block_size_bytes ;;
	kcore) start_of kcore /proc/kcore 65536 ;;
	*)
		echo "collect: no source $source" >&2
		exit 2
		;;
	esac
done
printf '\n@@%s done %s\n' "$mark" $count
