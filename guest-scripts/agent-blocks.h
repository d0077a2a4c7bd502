// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Part of agent.c: sets memory blocks online and offline, and waits for their states, like the script blocks.
 */
#define POLL_NS 2000000
#define REPEAT_US 100000

struct expectation {
	unsigned long long block;
	const char *state;
};

/* The next line of the request's stdin, NULL after the last. */
static char *next_line(char **rest)
{
	char *line = *rest, *stop;

	if (!*line)
		return NULL;
	stop = strchrnul(line, '\n');
	*rest = *stop ? stop + 1 : stop;
	*stop = 0;
	return line;
}

static const char *block_file(unsigned long long block, const char *name)
{
	static char path[LINE];

	snprintf(path, sizeof(path), BLOCKS "/memory%llu%s", block, name);
	return path;
}

static void interrupt(int signal)
{
	(void)signal;
}

/*
 * Interrupts the running system call after that many seconds; 0 cancels this. offline_pages (mm/memory_hotplug.c) gives
 * up on a signal. The signal is repeated, since the first may arrive just before the system call starts.
 */
static void interrupt_after(long seconds)
{
	struct sigaction action = { .sa_handler = interrupt };
	struct itimerval timer = { { 0, seconds ? REPEAT_US : 0 }, { seconds, 0 } };

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
}

/* Writes a word to a sysfs file; interrupts the write after that many seconds (0: never). Returns 0 or the errno. */
static int write_word(const char *path, const char *word, long seconds)
{
	char text[LINE];
	int size = snprintf(text, sizeof(text), "%s\n", word), fd = open(path, O_WRONLY | O_CLOEXEC), error = 0;

	if (fd < 0)
		return errno;
	if (seconds)
		interrupt_after(seconds);
	if (write(fd, text, (size_t)size) < 0)
		error = errno;
	if (seconds)
		interrupt_after(0);
	close(fd);
	return error;
}

static void put_answer(unsigned long long block, const char *text)
{
	char number[LINE];

	snprintf(number, sizeof(number), "%llu ", block);
	put_text(number);
	put_text(text);
	put_text("\n");
}

static void set_states(char *lines, const char *word, long seconds)
{
	char *line;

	while ((line = next_line(&lines))) {
		unsigned long long block = strtoull(line, NULL, 10);
		int error = write_word(block_file(block, "/state"), word, seconds);

		if (error) {
			char why[LINE];

			snprintf(why, sizeof(why), "failed %s", strerror(error));
			put_answer(block, why);
		} else {
			put_answer(block, "ok");
		}
	}
}

static void zones(char *lines)
{
	char *line;

	while ((line = next_line(&lines))) {
		unsigned long long block = strtoull(line, NULL, 10);
		const char *names = first_line(block_file(block, "/valid_zones"));

		put_answer(block, names ? names : "");
	}
}

static const char *observe(const struct expectation *expected)
{
	const char *state = NULL;

	if (access(block_file(expected->block, ""), F_OK))
		return "absent";
	if (strcmp(expected->state, "absent") && strcmp(expected->state, "present"))
		state = first_line(block_file(expected->block, "/state"));
	return state ? state : "present";
}

static bool all_met(const struct expectation *expected, size_t count)
{
	for (size_t e = 0; e < count; e++)
		if (strcmp(observe(&expected[e]), expected[e].state))
			return false;
	return true;
}

/*
 * The kernel creates a block's directory before it finishes adding memory, and deletes it before it removes page tables
 * and resources. It holds the device hotplug lock meanwhile, and a write to a block's state takes the same lock
 * (lock_device_hotplug_sysfs, drivers/base/core.c). So write "online" to an online block: this fails with EINVAL and
 * changes nothing, but returns only after the kernel has finished.
 */
static void wait_for_hotplug(void)
{
	struct dirent **found;
	int blocks = scandir(BLOCKS, &found, is_block, by_name);

	for (int b = 0; b < blocks; b++) {
		unsigned long long block = strtoull(found[b]->d_name + strlen("memory"), NULL, 10);
		const char *state = first_line(block_file(block, "/state"));

		if (state && !strcmp(state, "online")) {
			write_word(block_file(block, "/state"), "online", 0);
			break;
		}
	}
	if (blocks >= 0)
		free_names(found, blocks);
}

static long long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

/* Polls instead of waiting for a uevent: the kernel sends a block's "remove" before it deletes the directory. */
static int wait_for(char *lines, long long end)
{
	const struct timespec pause = { 0, POLL_NS };
	struct expectation *expected = calloc(input.size + 1, sizeof(*expected));
	size_t count = 0;
	char *line, *word;
	bool late;

	if (!expected)
		return complain("blocks: %s\n", strerror(errno));
	while ((line = next_line(&lines))) {
		expected[count].block = strtoull(line, &word, 10);
		expected[count++].state = *word ? word + 1 : word;
	}
	while ((late = !all_met(expected, count)) && now_ms() < end)
		nanosleep(&pause, NULL);
	for (size_t e = 0; late && e < count; e++) {
		const char *observed = observe(&expected[e]);
		char report[2 * LINE];

		if (!strcmp(observed, expected[e].state))
			continue;
		snprintf(report, sizeof(report), "%s %s", expected[e].state, observed);
		put_answer(expected[e].block, report);
	}
	free(expected);
	if (!late)
		wait_for_hotplug();
	return 0;
}

static int blocks(int count, char **words)
{
	input.data[input.size] = 0;
	if (access(BLOCKS, F_OK))
		return complain("blocks: can't find %s\n", BLOCKS);
	if (count == 1 && !strcmp(words[0], "zones"))
		zones(input.data);
	else if ((count == 2 || count == 3) && !strcmp(words[0], "set"))
		set_states(input.data, words[1], count == 3 ? atol(words[2]) : 0);
	else if (count == 2 && !strcmp(words[0], "wait"))
		return wait_for(input.data, now_ms() + atoll(words[1]) * 10);
	else
		return 2;
	return 0;
}
