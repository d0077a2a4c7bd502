// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * agent: does in the guest what the scripts collect, blocks and wait-work do, and starts no process for it.
 *
 *   agent collect BOUNDARY SOURCE...            once, as the script does it
 *   agent blocks set|wait|zones [ARGUMENT...]   likewise; reads stdin
 *   agent wait-work QUEUE SECONDS               likewise
 *   agent                                       stays, and does what it is asked for on stdin
 *
 * One that stays says "ready". A request is a line "BYTES WORD..." and BYTES of what would be stdin; the words are those
 * above. The answer is any number of "+BYTES\n" and "!BYTES\n", each with that many bytes of what would be stdout and
 * stderr, and at last "=STATUS\n". It ends with its stdin; harness/guest/agent.py is at the other end.
 *
 * Exits with 0, as a request does; 1 if nobody listens any more, or the wait was in vain; 2 if it could not be tried.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#ifndef RUN
#define RUN "/run/memhp"
#endif
#ifndef BLOCKS
#define BLOCKS "/sys/devices/system/memory"
#endif
#define CHUNK 16384
#define LINE 160
#define MAX_WORDS 64
#define MAX_REQUEST 4096
#define COUNT(array) (sizeof(array) / sizeof(*(array)))

struct text {
	char *data;
	size_t size, room;
};

static bool stays;
/* What a request has on its stdin. */
static struct text input;

static char out[65536];
static size_t waiting;

/* ---- what is printed --------------------------------------------------------------------------------------------- */

static void write_all(struct iovec *parts, int count)
{
	while (count) {
		ssize_t done = writev(1, parts, count);

		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			_exit(1);
		while (count && (size_t)done >= parts->iov_len) {
			done -= (ssize_t)parts->iov_len;
			parts++;
			count--;
		}
		if (count) {
			parts->iov_base = (char *)parts->iov_base + done;
			parts->iov_len -= (size_t)done;
		}
	}
}

/* Send what is waiting, then data, then what the request ends with, if that is not NULL. */
static void send_out(const char *data, size_t size, const char *ending)
{
	char header[LINE];
	int digits = stays && waiting + size ? snprintf(header, sizeof(header), "+%zu\n", waiting + size) : 0;
	struct iovec parts[] = {
		{ header, (size_t)digits },
		{ out, waiting },
		{ (void *)data, size },
		{ (void *)ending, ending ? strlen(ending) : 0 },
	};

	write_all(parts, COUNT(parts));
	waiting = 0;
}

static void flush(void)
{
	send_out(NULL, 0, NULL);
}

static void put(const char *data, size_t size)
{
	if (size > sizeof(out) - waiting) {
		send_out(data, size, NULL);
		return;
	}
	memcpy(out + waiting, data, size);
	waiting += size;
}

static void put_text(const char *text)
{
	put(text, strlen(text));
}

static int __attribute__((format(printf, 1, 2))) complain(const char *format, ...)
{
	char text[LINE], header[LINE];
	va_list values;
	int size;

	va_start(values, format);
	size = vsnprintf(text, sizeof(text), format, values);
	va_end(values);
	if (size >= (int)sizeof(text))
		size = sizeof(text) - 1;
	if (stays) {
		int digits = snprintf(header, sizeof(header), "!%d\n", size);
		struct iovec parts[] = { { header, (size_t)digits }, { text, (size_t)size } };

		flush();
		write_all(parts, COUNT(parts));
	} else if (write(2, text, (size_t)size) < 0) {
		_exit(1);
	}
	return 2;
}

/* ---- what is read ------------------------------------------------------------------------------------------------ */

static ssize_t get(int fd, char *data, size_t size)
{
	ssize_t done;

	do
		done = read(fd, data, size);
	while (done < 0 && errno == EINTR);
	return done;
}

static bool make_room(struct text *text, size_t more)
{
	size_t room = text->room ? text->room : CHUNK;
	char *data;

	while (room - text->size < more)
		room *= 2;
	if (room == text->room)
		return true;
	data = realloc(text->data, room);
	if (!data)
		return false;
	text->data = data;
	text->room = room;
	return true;
}

/* Read to the end. Returns 0 or the errno; what was read before is there in any case. */
static int read_all(int fd, struct text *text)
{
	text->size = 0;
	for (;;) {
		ssize_t done;

		if (!make_room(text, CHUNK))
			return ENOMEM;
		done = get(fd, text->data + text->size, text->room - text->size);
		if (done <= 0)
			return done ? errno : 0;
		text->size += (size_t)done;
	}
}

/* The first line without the white space around it, as the shell's read has it; NULL if there is no whole line. */
static const char *first_line(const char *path)
{
	static struct text text;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	char *start, *stop = NULL;

	text.size = 0;
	while (fd >= 0 && !stop && make_room(&text, LINE)) {
		ssize_t done = get(fd, text.data + text.size, LINE);

		if (done <= 0)
			break;
		stop = memchr(text.data + text.size, '\n', (size_t)done);
		text.size += (size_t)done;
	}
	if (fd >= 0)
		close(fd);
	if (!stop)
		return NULL;
	start = text.data;
	while (start < stop && (*start == ' ' || *start == '\t'))
		start++;
	while (start < stop && (stop[-1] == ' ' || stop[-1] == '\t'))
		stop--;
	*stop = 0;
	return start;
}

#include "agent-collect.h"
#include "agent-blocks.h"
#include "agent-work.h"

/* ---- requests ---------------------------------------------------------------------------------------------------- */

static int do_request(int count, char **words)
{
	if (count > 1 && !strcmp(words[0], "collect"))
		return collect(words[1], words + 2, count - 2);
	if (count > 1 && !strcmp(words[0], "blocks"))
		return blocks(count - 1, words + 1);
	if (count == 3 && !strcmp(words[0], "wait-work"))
		return wait_work(words[1], atoll(words[2]));
	return complain("usage: agent [collect BOUNDARY SOURCE...|blocks set WORD [SECONDS]|blocks wait CENTISECONDS|"
			"blocks zones|wait-work QUEUE SECONDS]\n");
}

/* Read a request; false at the end of stdin, or of what makes sense. */
static bool get_request(char *line, int *count, char **words)
{
	size_t size = 0, wanted, more;
	char *stop, *rest;

	/* Only the next request may follow what belongs to this one, and nobody sends it before the answer. */
	do {
		ssize_t done = get(0, line + size, MAX_REQUEST - 1 - size);

		if (done <= 0)
			return false;
		size += (size_t)done;
		stop = memchr(line, '\n', size);
	} while (!stop);
	*stop++ = 0;
	wanted = strtoul(line, &rest, 10);
	more = size - (size_t)(stop - line);
	input.size = 0;
	if (more > wanted || !make_room(&input, wanted + 1))
		return false;
	memcpy(input.data, stop, more);
	for (input.size = more; input.size < wanted;) {
		ssize_t done = get(0, input.data + input.size, wanted - input.size);

		if (done <= 0)
			return false;
		input.size += (size_t)done;
	}
	*count = 0;
	for (char *word = strtok(rest, " "); word && *count < MAX_WORDS; word = strtok(NULL, " "))
		words[(*count)++] = word;
	return true;
}

static int serve(void)
{
	char line[MAX_REQUEST], *words[MAX_WORDS], ending[LINE];
	int count;

	put_text("ready\n");
	flush();
	stays = true;
	note_blocks();
	while (get_request(line, &count, words)) {
		snprintf(ending, sizeof(ending), "=%d\n", do_request(count, words));
		send_out(NULL, 0, ending);
	}
	return 0;
}

int main(int argc, char **argv)
{
	int status;

	if (argc == 1)
		return serve();
	if (!strcmp(argv[1], "blocks") && (read_all(0, &input) || !make_room(&input, 1)))
		return complain("agent: stdin: %s\n", strerror(errno));
	status = do_request(argc - 1, argv + 1);
	flush();
	return status;
}
