// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * load-worker: does one kind of work, round by round, as load-keeper asks for it. No round leaves anything behind.
 *
 *   load-worker KIND [NAME=VALUE...]
 *
 * Writes "ready", or why it cannot. Then, for each line on its input, does a round and writes "ok" or "failed WHY".
 *
 *   ptdump      reads the kernel's page tables from debugfs, from start to end (mm/ptdump.c)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define BUFFER (256 << 10)

struct kind {
	const char *name;
	bool (*prepare)(void); /* may be missing; false if it cannot, and problem says why */
	bool (*round)(void);
};

static char problem[120];
static char buffer[BUFFER] __attribute__((aligned(65536)));

static bool __attribute__((format(printf, 1, 2))) fail(const char *format, ...)
{
	va_list values;

	va_start(values, format);
	vsnprintf(problem, sizeof(problem), format, values);
	va_end(values);
	return false;
}

static bool fail_errno(const char *what)
{
	return fail("%s: %s", what, strerror(errno));
}

/* ---- ptdump ------------------------------------------------------------------------------------------------------ */

static const char ptdump[] = "/sys/kernel/debug/kernel_page_tables";

static bool ptdump_prepare(void)
{
	return !access(ptdump, R_OK) || fail_errno(ptdump);
}

static bool ptdump_round(void)
{
	int fd = open(ptdump, O_RDONLY);
	ssize_t size;
	size_t all = 0;

	if (fd < 0)
		return fail_errno(ptdump);
	while ((size = read(fd, buffer, BUFFER)) > 0)
		all += (size_t)size;
	close(fd);
	if (size < 0)
		return fail_errno(ptdump);
	return all || fail("%s is empty", ptdump);
}

static const struct kind kinds[] = {
	{ "ptdump", ptdump_prepare, ptdump_round },
};

/* Rounds are asked for one by one; a line is read as a whole, since nothing else is written before its answer. */
static int serve(const struct kind *kind)
{
	char line[16];

	puts("ready");
	fflush(stdout);
	while (read(0, line, sizeof(line)) > 0) {
		if (kind->round())
			puts("ok");
		else
			printf("failed %s\n", problem);
		fflush(stdout);
	}
	return 0;
}

int main(int argc, char **argv)
{
	for (size_t i = 0; argc > 1 && i < sizeof(kinds) / sizeof(*kinds); i++) {
		if (strcmp(kinds[i].name, argv[1]))
			continue;
		if (!kinds[i].prepare || kinds[i].prepare())
			return serve(&kinds[i]);
		puts(problem);
		return 1;
	}
	puts("no such kind of work");
	return 2;
}
