// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * sleeper: puts the guest to sleep, to be saved, and gives each guest that is restored from it a life of its own.
 *
 *   sleeper HOST_KEY AUTHORIZED_KEYS PID_FILE
 *
 * Waits until nothing but itself wants to run, says "memhp: asleep" in the kernel's log, and reads one line from the
 * console:
 *
 *   memhp-wake SECONDS NANOSECONDS SEED HOST_KEY CLIENT_KEY...
 *
 * It feeds SEED (32 bytes, hexadecimal) to the kernel's random numbers and has them begin anew, sets the clock, writes
 * CLIENT_KEY and the bytes of HOST_KEY (hexadecimal) to the files of these names, and says "memhp: ready". Nothing secret
 * is in the guest's memory before. Exits with 0, or with 1 and the reason on standard output.
 *
 * The SSH server, whose pid is in PID_FILE, is stopped all that time: whoever connects meanwhile is kept waiting by the
 * kernel, and served with the new keys and random numbers alone.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define LINE 2048
#define SEED 32
#define MAX_KEY 256
#define LOOK_MS 5
#define QUIET_LOOKS 20
#define MAX_LOOKS 2000

static struct {
	struct rand_pool_info head;
	__u8 bytes[SEED];
} pool;

__attribute__((format(printf, 1, 2), noreturn)) static void fail(const char *format, ...)
{
	va_list values;

	va_start(values, format);
	vprintf(format, values);
	va_end(values);
	putchar('\n');
	exit(1);
}

/* The first LENGTH - 1 bytes of a small file, "" if there is none. */
static void read_start(const char *path, char *text, size_t length)
{
	ssize_t got = -1;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd >= 0) {
		got = read(fd, text, length - 1);
		close(fd);
	}
	text[got > 0 ? got : 0] = '\0';
}

/* Nobody but this process runs or could run: /proc/loadavg counts them, "0.00 0.00 0.00 1/60 99". */
static bool quiet(void)
{
	char text[128];
	unsigned int running;

	read_start("/proc/loadavg", text, sizeof(text));
	return sscanf(text, "%*s %*s %*s %u/", &running) == 1 && running <= 1;
}

static void settle(void)
{
	const struct timespec pause = { .tv_nsec = LOOK_MS * 1000000L };
	int row = 0;

	for (int look = 0; look < MAX_LOOKS && row < QUIET_LOOKS; look++) {
		row = quiet() ? row + 1 : 0;
		nanosleep(&pause, NULL);
	}
	if (row < QUIET_LOOKS)
		fail("the guest does not come to rest");
}

/* A line through the kernel's log comes out whole; one through the tty may be cut by a kernel message. */
static void say(int console, const char *what)
{
	char text[64], policy[16];
	int fd = -1;

	read_start("/proc/sys/kernel/printk_devkmsg", policy, sizeof(policy));
	if (strncmp(policy, "off", 3) != 0)
		fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	snprintf(text, sizeof(text), "%smemhp: %s\n", fd < 0 ? "" : "<0>", what);
	if (write(fd < 0 ? console : fd, text, strlen(text)) < 0)
		fail("cannot say %s: %s", what, strerror(errno));
	if (fd >= 0)
		close(fd);
}

/* The server goes to the background first and writes its pid then. */
static pid_t await_pid(const char *path)
{
	const struct timespec pause = { .tv_nsec = LOOK_MS * 1000000L };
	char text[16];

	for (int look = 0; look < MAX_LOOKS; look++) {
		char *end;
		long pid;

		read_start(path, text, sizeof(text));
		pid = strtol(text, &end, 10);
		if (pid > 1 && *end == '\n')
			return (pid_t)pid;
		nanosleep(&pause, NULL);
	}
	fail("no pid in %s", path);
}

static void read_line(int console, char *line)
{
	size_t length = 0;

	while (length == 0 || line[length - 1] != '\n') {
		ssize_t got = length < LINE ? read(console, line + length, LINE - length) : 0;

		if (got > 0)
			length += (size_t)got;
		else if (got == 0 || errno != EINTR)
			fail("the console gave no line that ends");
	}
	line[length - 1] = '\0';
}

static int digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* Returns the number of bytes, or -1 if TEXT is not hexadecimal, or more than MOST bytes. */
static int unhex(const char *text, __u8 *bytes, int most)
{
	int count = 0;

	for (; text[0] && text[1]; text += 2) {
		int high = digit(text[0]), low = digit(text[1]);

		if (high < 0 || low < 0 || count == most)
			return -1;
		bytes[count++] = (__u8)(high << 4 | low);
	}
	return text[0] ? -1 : count;
}

static void reseed(void)
{
	int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);

	pool.head.entropy_count = 8 * SEED;
	pool.head.buf_size = SEED;
	if (fd < 0 || ioctl(fd, RNDADDENTROPY, &pool.head) != 0 || ioctl(fd, RNDRESEEDCRNG) != 0)
		fail("cannot reseed the random numbers: %s", strerror(errno));
	close(fd);
	explicit_bzero(&pool, sizeof(pool));
}

static void write_file(const char *path, const void *data, size_t length)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0 || write(fd, data, length) != (ssize_t)length || close(fd) != 0)
		fail("cannot write %s: %s", path, strerror(errno));
}

static void wake(char *line, const char *host_key, const char *authorized_keys)
{
	struct timespec now;
	__u8 key[MAX_KEY];
	char *word, *rest = line;
	int length;

	word = strsep(&rest, " ");
	if (strcmp(word, "memhp-wake") != 0 || !rest)
		fail("the console said something else");
	now.tv_sec = strtoll(strsep(&rest, " "), NULL, 10);
	now.tv_nsec = rest ? strtol(strsep(&rest, " "), NULL, 10) : 0;
	if (!rest || unhex(strsep(&rest, " "), pool.bytes, SEED) != SEED)
		fail("the console gave no seed");
	length = rest ? unhex(strsep(&rest, " "), key, MAX_KEY) : -1;
	if (length <= 0 || !rest)
		fail("the console gave no keys");
	reseed();
	if (clock_settime(CLOCK_REALTIME, &now) != 0)
		fail("cannot set the clock: %s", strerror(errno));
	word = rest + strlen(rest);
	*word++ = '\n';
	write_file(authorized_keys, rest, word - rest);
	write_file(host_key, key, length);
	explicit_bzero(key, sizeof(key));
}

int main(int argc, char **argv)
{
	static char line[LINE + 1];
	struct termios before, raw;
	pid_t server;
	int console;

	if (argc != 4)
		fail("usage: sleeper HOST_KEY AUTHORIZED_KEYS PID_FILE");
	server = await_pid(argv[3]);
	console = open("/dev/console", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (console < 0 || tcgetattr(console, &before) != 0)
		fail("cannot read from the console: %s", strerror(errno));
	/* What comes must not go back into the console's log. */
	raw = before;
	raw.c_lflag &= ~(tcflag_t)(ECHO | ECHONL | ICANON | ISIG);
	raw.c_iflag &= ~(tcflag_t)(IXON | IXOFF | ICRNL);
	raw.c_cc[VMIN] = 1;
	raw.c_cc[VTIME] = 0;
	if (tcsetattr(console, TCSAFLUSH, &raw) != 0)
		fail("cannot set the console: %s", strerror(errno));
	if (kill(server, SIGSTOP) != 0)
		fail("cannot stop process %d: %s", server, strerror(errno));
	settle();
	say(console, "asleep");
	read_line(console, line);
	wake(line, argv[1], argv[2]);
	explicit_bzero(line, sizeof(line));
	if (kill(server, SIGCONT) != 0)
		fail("cannot continue process %d: %s", server, strerror(errno));
	tcsetattr(console, TCSANOW, &before);
	say(console, "ready");
	return 0;
}
