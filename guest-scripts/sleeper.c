// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * sleeper: waits in the guest while memhp saves a snapshot of it, then gives each restored guest its own identity.
 *
 *   exec sleeper HOST_KEY AUTHORIZED_KEYS PID_FILE
 *
 * 1. waits until no other process is runnable, and logs "memhp: asleep". memhp saves the snapshot then; the guest's
 *    memory holds no secret yet.
 * 2. reads struct order from the console. harness/guest/identity.py sends it to each restored guest.
 * 3. adds the seed to the kernel's random number generator and reseeds it, sets the clock, writes the keys to the files
 *    HOST_KEY and AUTHORIZED_KEYS, and logs "memhp: ready".
 *
 * On error it logs "memhp: failed: sleep: REASON".
 *
 * The SSH server, whose pid is in PID_FILE, is stopped meanwhile (SIGSTOP). The kernel queues new connections, so the
 * server only uses the new keys and random numbers.
 *
 * /init executes the sleeper, which stays process 1 and reaps orphans. Starting yet another program would delay the
 * first login to a restored guest.
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
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define MAGIC "memhp-wake"
#define SEED 32
#define ED25519 32
#define POLL_MS 5
#define IDLE_POLLS 20
#define MAX_POLLS 2000

/* Bytes only, so that the layout is the same on all architectures. Numbers are little-endian. */
static struct order {
	char magic[sizeof(MAGIC) - 1];
	__u8 seconds[8];
	__u8 nanoseconds[8];
	__u8 seed[SEED];
	/* the host's private and public key, and the client's public key */
	__u8 host[2 * ED25519];
	__u8 client[ED25519];
} order;

static struct {
	struct rand_pool_info head;
	__u8 bytes[SEED];
} pool;

static void report(int console, const char *what);
static void reap_orphans(void) __attribute__((noreturn));

__attribute__((format(printf, 1, 2), noreturn)) static void fail(const char *format, ...)
{
	char text[256] = "failed: sleep: ";
	size_t length = strlen(text);
	va_list values;

	va_start(values, format);
	vsnprintf(text + length, sizeof(text) - length, format, values);
	va_end(values);
	if (getpid() != 1) {
		puts(text);
		exit(1);
	}
	report(STDOUT_FILENO, text);
	reap_orphans();
}

/* Process 1 must not exit, and must reap orphans. */
static void reap_orphans(void)
{
	sigset_t children;
	int number;

	sigemptyset(&children);
	sigaddset(&children, SIGCHLD);
	sigprocmask(SIG_BLOCK, &children, NULL);
	for (;;) {
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		sigwait(&children, &number);
	}
}

/* The first length - 1 bytes of a file, "" if it cannot be read. */
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

/* Whether no other task is runnable: the fourth field of /proc/loadavg is RUNNABLE/TOTAL, "0.00 0.00 0.00 1/60 99". */
static bool is_idle(void)
{
	char text[128];
	unsigned int running;

	read_start("/proc/loadavg", text, sizeof(text));
	return sscanf(text, "%*s %*s %*s %u/", &running) == 1 && running <= 1;
}

static void wait_idle(void)
{
	const struct timespec pause = { .tv_nsec = POLL_MS * 1000000L };
	int idle_polls = 0;

	for (int poll = 0; poll < MAX_POLLS && idle_polls < IDLE_POLLS; poll++) {
		idle_polls = is_idle() ? idle_polls + 1 : 0;
		nanosleep(&pause, NULL);
	}
	if (idle_polls < IDLE_POLLS)
		fail("the guest does not become idle");
}

/* Logs a line. It goes through the kernel log, since kernel messages may interrupt a line written to the tty. */
static void report(int console, const char *what)
{
	char text[300], policy[16];
	int fd = -1;

	read_start("/proc/sys/kernel/printk_devkmsg", policy, sizeof(policy));
	if (strncmp(policy, "off", 3) != 0)
		fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	snprintf(text, sizeof(text), "%smemhp: %s\n", fd < 0 ? "" : "<0>", what);
	/* There is no other way to report an error of this write. */
	(void)!write(fd < 0 ? console : fd, text, strlen(text));
	if (fd >= 0)
		close(fd);
}

/* Waits, since the server writes the file only after it has gone to the background. */
static pid_t await_pid(const char *path)
{
	const struct timespec pause = { .tv_nsec = POLL_MS * 1000000L };
	char text[16];

	for (int poll = 0; poll < MAX_POLLS; poll++) {
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

static void read_order(int console)
{
	size_t length = 0;

	while (length < sizeof(order)) {
		ssize_t got = read(console, (char *)&order + length, sizeof(order) - length);

		if (got > 0)
			length += (size_t)got;
		else if (got == 0 || errno != EINTR)
			fail("cannot read from the console after %zu bytes", length);
	}
	if (memcmp(order.magic, MAGIC, sizeof(order.magic)) != 0)
		fail("invalid order on the console");
}

static long long number(const __u8 *bytes)
{
	unsigned long long value = 0;

	for (int at = 7; at >= 0; at--)
		value = value << 8 | bytes[at];
	return (long long)value;
}

static void reseed(void)
{
	int fd = open("/dev/urandom", O_WRONLY | O_CLOEXEC);

	memcpy(pool.bytes, order.seed, SEED);
	pool.head.entropy_count = 8 * SEED;
	pool.head.buf_size = SEED;
	if (fd < 0 || ioctl(fd, RNDADDENTROPY, &pool.head) != 0 || ioctl(fd, RNDRESEEDCRNG) != 0)
		fail("cannot reseed the random number generator: %s", strerror(errno));
	close(fd);
	explicit_bzero(&pool, sizeof(pool));
}

static void write_file(const char *path, const void *data, size_t length)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);

	if (fd < 0 || write(fd, data, length) != (ssize_t)length || close(fd) != 0)
		fail("cannot write %s: %s", path, strerror(errno));
}

/* RFC 4253, 6.6 and RFC 8709, 4: "ssh-ed25519" and the key as strings, each after its length */
#define TYPE "\0\0\0\13ssh-ed25519"

/* The format of dropbear: the type, then private and public key in one string (buf_put_ed25519_priv_key). */
static void write_host_key(const char *path)
{
	static const char head[] = TYPE "\0\0\0\100";
	__u8 text[sizeof(head) - 1 + sizeof(order.host)];

	memcpy(text, head, sizeof(head) - 1);
	memcpy(text + sizeof(head) - 1, order.host, sizeof(order.host));
	write_file(path, text, sizeof(text));
	explicit_bzero(text, sizeof(text));
}

/* "ssh-ed25519" and the key in base64: 51 bytes become 68 characters without padding. */
static void write_client_key(const char *path)
{
	static const char head[] = TYPE "\0\0\0\40", name[] = "ssh-ed25519 ";
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	__u8 blob[sizeof(head) - 1 + sizeof(order.client)];
	char line[sizeof(name) + sizeof(blob) / 3 * 4];
	char *end = line + sizeof(name) - 1;

	_Static_assert(sizeof(blob) % 3 == 0, "padding");
	memcpy(blob, head, sizeof(head) - 1);
	memcpy(blob + sizeof(head) - 1, order.client, sizeof(order.client));
	memcpy(line, name, sizeof(name) - 1);
	for (size_t at = 0; at < sizeof(blob); at += 3) {
		unsigned int bits = (unsigned int)(blob[at] << 16 | blob[at + 1] << 8 | blob[at + 2]);

		for (int shift = 18; shift >= 0; shift -= 6)
			*end++ = digits[bits >> shift & 63];
	}
	*end++ = '\n';
	write_file(path, line, (size_t)(end - line));
}

static void wake(const char *host_key, const char *authorized_keys)
{
	struct timespec now = { .tv_sec = number(order.seconds), .tv_nsec = number(order.nanoseconds) };

	reseed();
	if (clock_settime(CLOCK_REALTIME, &now) != 0)
		fail("cannot set the clock: %s", strerror(errno));
	write_client_key(authorized_keys);
	write_host_key(host_key);
	explicit_bzero(&order, sizeof(order));
}

/*
 * QEMU translates code when a guest runs it for the first time, and this takes most of the time in a guest that was
 * just restored. The first command over SSH forks and starts a shell. Do that here once, on another CPU, in parallel
 * with the rest of the wake-up.
 */
static void warm_up(void)
{
	if (fork() == 0) {
		execl("/bin/sh", "sh", "-c", "true", (char *)NULL);
		_exit(1);
	}
}

int main(int argc, char **argv)
{
	struct termios before, raw;
	pid_t server;
	int console;

	if (argc != 4)
		fail("usage: sleeper HOST_KEY AUTHORIZED_KEYS PID_FILE");
	server = await_pid(argv[3]);
	console = open("/dev/console", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (console < 0 || tcgetattr(console, &before) != 0)
		fail("cannot read from the console: %s", strerror(errno));
	/* Raw: no echo of the keys to the console log, and no special characters. */
	raw = before;
	cfmakeraw(&raw);
	raw.c_oflag = before.c_oflag;
	raw.c_cc[VMIN] = 1;
	raw.c_cc[VTIME] = 0;
	if (tcsetattr(console, TCSAFLUSH, &raw) != 0)
		fail("cannot set the console: %s", strerror(errno));
	if (kill(server, SIGSTOP) != 0)
		fail("cannot stop process %d: %s", server, strerror(errno));
	wait_idle();
	report(console, "asleep");
	read_order(console);
	warm_up();
	wake(argv[1], argv[2]);
	if (kill(server, SIGCONT) != 0)
		fail("cannot continue process %d: %s", server, strerror(errno));
	tcsetattr(console, TCSANOW, &before);
	report(console, "ready");
	close(console);
	reap_orphans();
}
