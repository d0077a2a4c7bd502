// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * one-cpu: a library preloaded into the SSH server that keeps each of its sessions on one CPU, the lowest.
 *
 * A question to the guest's agent wakes up one process after another. If they run on several CPUs, each time one emulated
 * CPU has to interrupt another, which takes longer than all that the processes do. /init has devices interrupt the same
 * CPU, and the agent follows its session (stay_near, agent.c).
 *
 * What a session starts runs on all CPUs: loads, and whatever else a test or a person starts.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sched.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

/* In a child of the server, which may use several CPUs: use one. In a child of a session: use all there are. */
static void choose_cpus(void)
{
	cpu_set_t cpus;
	int first = 0;

	if (sched_getaffinity(0, sizeof(cpus), &cpus))
		return;
	if (CPU_COUNT(&cpus) > 1) {
		while (!CPU_ISSET(first, &cpus))
			first++;
		CPU_ZERO(&cpus);
		CPU_SET(first, &cpus);
	} else {
		memset(&cpus, 0xff, sizeof(cpus));
	}
	sched_setaffinity(0, sizeof(cpus), &cpus);
}

pid_t fork(void)
{
	pid_t (*libc_fork)(void);
	pid_t pid;

	*(void **)&libc_fork = dlsym(RTLD_NEXT, "fork");
	pid = libc_fork();
	if (pid == 0)
		choose_cpus();
	return pid;
}
