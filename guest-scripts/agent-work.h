// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Part of agent.c: waits until no kernel worker runs work of a workqueue, like the script wait-work.
 */
#ifndef PROC
#define PROC "/proc"
#endif
#define POLL_NS 2000000

static int is_process(const struct dirent *entry)
{
	return *entry->d_name >= '0' && *entry->d_name <= '9';
}

/* Whether a process name is that of a worker running work of queue (wq_worker_comm, kernel/workqueue.c, v4.18). */
static bool works_for(const char *name, const char *queue)
{
	const char *plus = strrchr(name, '+');

	return plus && !strncmp(name, "kworker/", strlen("kworker/")) && !strcmp(plus + 1, queue);
}

/* Whether the queue has such a worker; prints the names of all of them if asked to. */
static bool working(const char *queue, bool print)
{
	struct dirent **found;
	int processes = scandir(PROC, &found, is_process, by_name);
	bool any = false;

	for (int p = 0; p < processes && (print || !any); p++) {
		char path[PATH_MAX];
		const char *name;

		snprintf(path, sizeof(path), PROC "/%s/comm", found[p]->d_name);
		name = first_line(path);
		if (!name || !works_for(name, queue))
			continue;
		any = true;
		if (print) {
			put_text(name);
			put_text("\n");
		}
	}
	if (processes >= 0)
		free_names(found, processes);
	return any;
}

/* Looks every 2 ms, as nothing tells the end of work (agent-wait.h). */
static int wait_work(int count, char **words)
{
	const struct timespec pause = { 0, POLL_NS };
	const char *queue = count == 2 ? words[0] : "";
	long long end = count == 2 ? now() + atoll(words[1]) * 1000 : 0;

	while (working(queue, false)) {
		if (!left(end))
			return working(queue, true) ? 1 : 0;
		nanosleep(&pause, NULL);
	}
	return count == 2 ? 0 : -1;
}
