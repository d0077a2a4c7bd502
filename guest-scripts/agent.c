// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * agent: does the work of the scripts beside it, and of load-keeper's clients, without starting processes (but
 * modprobe, for a driver that is not loaded).
 *
 *   agent SCRIPT ARGUMENT...   runs one request, with the script's stdin and arguments, and exits
 *   agent                      persistent: serves requests from stdin until end of file
 *   agent anywhere             the same, but on any CPU
 *
 * A persistent agent prints "ready" once it can take requests. harness/guest/agent.py is the client.
 *
 *   request   "NUMBER BYTES WORD...\n", then BYTES bytes: the request's stdin. The words are a script and its arguments.
 *             A client may send several at once: they are answered in order. Their numbers are its own choice.
 *   answer    any number of "+BYTES\n" and "!BYTES\n", each followed by BYTES bytes of the request's stdout or stderr,
 *             then "=NUMBER STATUS\n".
 *
 * Status of a request and of the agent: that of the script. It is 2 for an invalid request.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <linux/netlink.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef RUN
#define RUN "/run/memhp"
#endif
#ifndef BLOCKS
#define BLOCKS "/sys/devices/system/memory"
#endif
#ifndef BUS
#define BUS "/sys/bus"
#endif
#define CHUNK 16384
#define LINE 160
#define MAX_WORDS 64
#define MAX_REQUEST 4096
#define MAX_STDIN (16UL << 20)
#define MAX_FILE (64UL << 20)
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

static int __attribute__((format(printf, 1, 2))) say(const char *format, ...)
{
	char text[LINE + PATH_MAX];
	va_list values;
	int size;

	va_start(values, format);
	size = vsnprintf(text, sizeof(text), format, values);
	va_end(values);
	put(text, size < (int)sizeof(text) ? (size_t)size : sizeof(text) - 1);
	return 0;
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

/* Reads until end of file. Returns 0 or the errno (EFBIG after MAX_FILE); text has what was read before an error. */
static int read_all(int fd, struct text *text)
{
	text->size = 0;
	for (;;) {
		ssize_t done;

		if (text->size > MAX_FILE)
			return EFBIG;
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

#include "load-client.h"
#include "agent-files.h"
#include "agent-wait.h"
#include "agent-collect.h"
#include "agent-blocks.h"
#include "agent-work.h"
#include "agent-slot.h"
#include "agent-pmem.h"

/* ---- requests ---------------------------------------------------------------------------------------------------- */

static int do_request(int count, char **words)
{
	static const struct {
		const char *script;
		int (*run)(int count, char **words);
	} scripts[] = {
		{ "collect", collect },		{ "blocks", blocks },	    { "files", files },
		{ "wait-driver", wait_driver }, { "wait-work", wait_work }, { "slot", slot },
		{ "pmem", pmem },		{ "load-keeper", command_loads },
	};

	for (size_t s = 0; count && s < COUNT(scripts); s++) {
		int status = strcmp(words[0], scripts[s].script) ? -1 : scripts[s].run(count - 1, words + 1);

		if (status >= 0)
			return status;
	}
	return complain("agent: invalid request: %s\n", count ? words[0] : "");
}

/* What has been received: requests, and the beginning of one. */
static struct text received;

static bool receive(void)
{
	ssize_t done;

	if (!make_room(&received, CHUNK))
		return false;
	done = get(0, received.data + received.size, received.room - received.size);
	received.size += done > 0 ? (size_t)done : 0;
	return done > 0;
}

/* Reads a request; returns false at end of file and for a malformed request. */
static bool get_request(char *line, int *count, char **words, unsigned long *number)
{
	unsigned long stdin_size;
	size_t head;
	char *stop, *rest;

	while (!(stop = received.size ? memchr(received.data, '\n', received.size) : NULL))
		if (received.size >= MAX_REQUEST || !receive())
			return false;
	head = (size_t)(stop - received.data) + 1;
	if (head > MAX_REQUEST)
		return false;
	memcpy(line, received.data, head);
	line[head - 1] = 0;
	*number = strtoul(line, &rest, 10);
	stdin_size = strtoul(rest, &rest, 10);
	/* One byte more: where lines are split, the last one ends with a 0. */
	input.size = 0;
	if (stdin_size > MAX_STDIN || !make_room(&input, stdin_size + 1))
		return false;
	while (received.size - head < stdin_size)
		if (!receive())
			return false;
	memcpy(input.data, received.data + head, stdin_size);
	input.size = stdin_size;
	received.size -= head + stdin_size;
	memmove(received.data, received.data + head + stdin_size, received.size);
	*count = 0;
	for (char *word = strtok(rest, " "); word && *count < MAX_WORDS; word = strtok(NULL, " "))
		words[(*count)++] = word;
	return true;
}

/* Runs on the CPU of its SSH session, if that keeps to one (one-cpu.c). */
static void stay_near(void)
{
	cpu_set_t cpus;

	if (!sched_getaffinity(getppid(), sizeof(cpus), &cpus) && CPU_COUNT(&cpus) == 1)
		sched_setaffinity(0, sizeof(cpus), &cpus);
}

static int serve(void)
{
	char line[MAX_REQUEST], *words[MAX_WORDS], last_line[LINE];
	unsigned long number;
	int count;

	put_text("ready\n");
	flush();
	persistent = true;
	note_blocks();
	while (get_request(line, &count, words, &number)) {
		snprintf(last_line, sizeof(last_line), "=%lu %d\n", number, do_request(count, words));
		send_out(NULL, 0, last_line);
	}
	return 0;
}

/* The scripts that read stdin. */
static bool reads_input(const char *script)
{
	return !strcmp(script, "blocks") || !strcmp(script, "files");
}

int main(int argc, char **argv)
{
	int status;

	if (argc == 1)
		stay_near();
	if (argc == 1 || (argc == 2 && !strcmp(argv[1], "anywhere")))
		return serve();
	if (reads_input(argv[1]) && (read_all(0, &input) || !make_room(&input, 1)))
		return complain("agent: stdin: %s\n", strerror(errno));
	status = do_request(argc - 1, argv + 1);
	flush();
	return status;
}
