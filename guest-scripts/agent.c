// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * agent: does the work of the scripts collect, blocks and wait-work without starting processes.
 *
 *   agent collect BOUNDARY SOURCE...            runs one request and exits
 *   agent blocks set|wait|zones [ARGUMENT...]   likewise; reads stdin
 *   agent wait-work QUEUE SECONDS               likewise
 *   agent                                       persistent: serves requests from stdin until end of file
 *
 * A persistent agent prints "ready" once it can take requests. harness/guest/agent.py is the client.
 *
 *   request   "BYTES WORD...\n", then BYTES bytes: the request's stdin. The words are the arguments listed above.
 *   answer    any number of "+BYTES\n" and "!BYTES\n", each followed by BYTES bytes of the request's stdout or stderr,
 *             then "=STATUS\n".
 *
 * Status of a request and of the agent: 0: done; 1: the wait timed out, or stdout is closed; 2: invalid request, or it
 * could not be started.
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

static bool persistent;
/* stdin of the request */
static struct text input;

static char out[65536];
static size_t buffered;

/* ---- output ------------------------------------------------------------------------------------------------------ */

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

/* Sends the buffered output, then data, then the line that ends the answer, unless it is NULL. */
static void send_out(const char *data, size_t size, const char *last_line)
{
	char header[LINE];
	int digits = persistent && buffered + size ? snprintf(header, sizeof(header), "+%zu\n", buffered + size) : 0;
	struct iovec parts[] = {
		{ header, (size_t)digits },
		{ out, buffered },
		{ (void *)data, size },
		{ (void *)last_line, last_line ? strlen(last_line) : 0 },
	};

	write_all(parts, COUNT(parts));
	buffered = 0;
}

static void flush(void)
{
	send_out(NULL, 0, NULL);
}

static void put(const char *data, size_t size)
{
	if (size > sizeof(out) - buffered) {
		send_out(data, size, NULL);
		return;
	}
	memcpy(out + buffered, data, size);
	buffered += size;
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
	if (persistent) {
		int digits = snprintf(header, sizeof(header), "!%d\n", size);
		struct iovec parts[] = { { header, (size_t)digits }, { text, (size_t)size } };

		flush();
		write_all(parts, COUNT(parts));
	} else if (write(2, text, (size_t)size) < 0) {
		_exit(1);
	}
	return 2;
}

/* ---- input ------------------------------------------------------------------------------------------------------- */

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

/* Reads until end of file. Returns 0 or the errno; text has what was read before an error. */
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

/* The first line, trimmed as the shell's read trims it; NULL if there is no complete line. */
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

/* Reads a request; returns false at end of file and for a malformed request. */
static bool get_request(char *line, int *count, char **words)
{
	size_t size = 0, stdin_size, surplus;
	char *stop, *rest;

	/* The client waits for the answer, so no bytes of the next request can follow those of this one. */
	do {
		ssize_t done = get(0, line + size, MAX_REQUEST - 1 - size);

		if (done <= 0)
			return false;
		size += (size_t)done;
		stop = memchr(line, '\n', size);
	} while (!stop);
	*stop++ = 0;
	stdin_size = strtoul(line, &rest, 10);
	surplus = size - (size_t)(stop - line);
	input.size = 0;
	if (surplus > stdin_size || !make_room(&input, stdin_size + 1))
		return false;
	memcpy(input.data, stop, surplus);
	for (input.size = surplus; input.size < stdin_size;) {
		ssize_t done = get(0, input.data + input.size, stdin_size - input.size);

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
	char line[MAX_REQUEST], *words[MAX_WORDS], last_line[LINE];
	int count;

	put_text("ready\n");
	flush();
	persistent = true;
	note_blocks();
	while (get_request(line, &count, words)) {
		snprintf(last_line, sizeof(last_line), "=%d\n", do_request(count, words));
		send_out(NULL, 0, last_line);
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
