// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Part of agent.c: sets memory blocks online and offline, and waits for them, as the script blocks does.
 */
#define POLL_NS 2000000
#define AGAIN_US 100000

struct wish {
	unsigned long long block;
	const char *wanted;
};

/* The next line of what the request brings on its stdin, NULL after the last. */
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
 * Interrupt whatever system call is under way after so many seconds, and again: the first signal may come just before
 * it begins. offline_pages gives up for one (mm/memory_hotplug.c). Never, if they are 0.
 */
static void lose_patience(long seconds)
{
	struct sigaction action = { .sa_handler = interrupt };
	struct itimerval timer = { { 0, seconds ? AGAIN_US : 0 }, { seconds, 0 } };

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
}

/* Write a word into a file of sysfs; returns 0 or the errno. */
static int write_word(const char *path, const char *word, long patience)
{
	char text[LINE];
	int size = snprintf(text, sizeof(text), "%s\n", word), fd = open(path, O_WRONLY | O_CLOEXEC), error = 0;

	if (fd < 0)
		return errno;
	if (patience)
		lose_patience(patience);
	if (write(fd, text, (size_t)size) < 0)
		error = errno;
	if (patience)
		lose_patience(0);
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

static void set_states(char *lines, const char *word, long patience)
{
	char *line;

	while ((line = next_line(&lines))) {
		unsigned long long block = strtoull(line, NULL, 10);
		int error = write_word(block_file(block, "/state"), word, patience);

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
		const char *said = first_line(block_file(block, "/valid_zones"));

		put_answer(block, said ? said : "");
	}
}

static const char *seen(const struct wish *wish)
{
	const char *said = NULL;

	if (access(block_file(wish->block, ""), F_OK))
		return "absent";
	if (strcmp(wish->wanted, "absent") && strcmp(wish->wanted, "present"))
		said = first_line(block_file(wish->block, "/state"));
	return said ? said : "present";
}

static bool all_true(const struct wish *wishes, size_t count)
{
	for (size_t w = 0; w < count; w++)
		if (strcmp(seen(&wishes[w]), wishes[w].wanted))
			return false;
	return true;
}

/*
 * A block's directory comes before, and goes before, page tables and resources do. Whoever adds or removes memory holds
 * the lock that writing a state takes (lock_device_hotplug_sysfs, drivers/base/core.c): that an online block shall be
 * online is refused (EINVAL) and changes nothing, but not before they are done.
 */
static void await_lock(void)
{
	struct dirent **found;
	int blocks = scandir(BLOCKS, &found, is_block, by_name);

	for (int b = 0; b < blocks; b++) {
		unsigned long long block = strtoull(found[b]->d_name + strlen("memory"), NULL, 10);
		const char *said = first_line(block_file(block, "/state"));

		if (said && !strcmp(said, "online")) {
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

/*
 * A condition checked again and again, not a uevent awaited: a block's "remove" is announced before its directory is
 * gone.
 */
static int wait_for(char *lines, long long end)
{
	const struct timespec pause = { 0, POLL_NS };
	struct wish *wishes = calloc(input.size + 1, sizeof(*wishes));
	size_t count = 0;
	char *line, *word;
	bool late;

	if (!wishes)
		return complain("blocks: %s\n", strerror(errno));
	while ((line = next_line(&lines))) {
		wishes[count].block = strtoull(line, &word, 10);
		wishes[count++].wanted = *word ? word + 1 : word;
	}
	while ((late = !all_true(wishes, count)) && now_ms() < end)
		nanosleep(&pause, NULL);
	for (size_t w = 0; late && w < count; w++) {
		const char *state = seen(&wishes[w]);
		char report[2 * LINE];

		if (!strcmp(state, wishes[w].wanted))
			continue;
		snprintf(report, sizeof(report), "%s %s", wishes[w].wanted, state);
		put_answer(wishes[w].block, report);
	}
	free(wishes);
	if (!late)
		await_lock();
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
