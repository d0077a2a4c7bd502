// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Part of agent.c: sets memory blocks online and offline, and waits for their states, like the script blocks.
 */
struct expectation {
	unsigned long long block;
	const char *state;
};

static const char *block_file(unsigned long long block, const char *name)
{
	static char path[LINE];

	snprintf(path, sizeof(path), BLOCKS "/memory%llu%s", block, name);
	return path;
}

static void set_states(char *lines, const char *word, long seconds)
{
	char *line;

	while ((line = next_line(&lines))) {
		unsigned long long block = strtoull(line, NULL, 10);

		say("%llu ", block);
		put_written(write_line(block_file(block, "/state"), word, seconds));
	}
}

static void zones(char *lines)
{
	char *line;

	while ((line = next_line(&lines))) {
		unsigned long long block = strtoull(line, NULL, 10);
		const char *names = first_line(block_file(block, "/valid_zones"));

		say("%llu %s\n", block, names ? names : "");
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

struct expectations {
	struct expectation *all;
	size_t count;
	size_t next; /* the first one to look at: usually the one that was not met the last time */
};

static bool all_met(void *what)
{
	struct expectations *expected = what;

	for (size_t met = 0; met < expected->count; met++) {
		const struct expectation *e = &expected->all[expected->next];

		if (strcmp(observe(e), e->state))
			return false;
		expected->next = (expected->next + 1) % expected->count;
	}
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
			write_line(block_file(block, "/state"), "online", 0);
			break;
		}
	}
	if (blocks >= 0)
		free_names(found, blocks);
}

static int wait_for(char *lines, long long end)
{
	struct expectations expected = { calloc(input.size + 1, sizeof(struct expectation)), 0, 0 };
	char *line, *word;
	bool met;

	if (!expected.all)
		return complain("blocks: %s\n", strerror(errno));
	while ((line = next_line(&lines))) {
		struct expectation *e = &expected.all[expected.count++];

		e->block = strtoull(line, &word, 10);
		e->state = *word ? word + 1 : word;
	}
	met = await(all_met, &expected, end);
	for (size_t e = 0; !met && e < expected.count; e++) {
		const char *observed = observe(&expected.all[e]);

		if (strcmp(observed, expected.all[e].state))
			say("%llu %s %s\n", expected.all[e].block, expected.all[e].state, observed);
	}
	free(expected.all);
	if (met)
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
		return wait_for(input.data, now() + atoll(words[1]) * 10);
	else
		return -1;
	return 0;
}
