// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Part of agent.c: reads and writes files that the client names, like the script files; and what other parts use for
 * files of sysfs.
 */
#define REPEAT_US 100000

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

/* Each call overwrites the result of the last one. */
static const char *__attribute__((format(printf, 1, 2))) path_of(const char *format, ...)
{
	static char path[PATH_MAX];
	va_list values;

	va_start(values, format);
	vsnprintf(path, sizeof(path), format, values);
	va_end(values);
	return path;
}

static bool exists(const char *path)
{
	return !access(path, F_OK);
}

/* The last part of a symbolic link's target, "" if there is no such link. Each call overwrites the last result. */
static const char *link_name(const char *path)
{
	static char target[PATH_MAX];
	ssize_t size = readlink(path, target, sizeof(target) - 1);

	target[size < 0 ? 0 : size] = 0;
	return basename(target);
}

/* ---- writing ----------------------------------------------------------------------------------------------------- */

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

static long long nanoseconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

struct written {
	int error; /* errno */
	long long time; /* that the kernel took for the write, in nanoseconds */
};

/* Writes a line to a file that exists; interrupts the write after that many seconds (0: never). */
static struct written write_line(const char *path, const char *line, long seconds)
{
	static struct text text;
	struct written done = { 0, 0 };
	size_t size = strlen(line);
	int fd = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);

	if (fd < 0)
		return (struct written){ errno, 0 };
	text.size = 0;
	if (!make_room(&text, size + 1)) {
		close(fd);
		return (struct written){ ENOMEM, 0 };
	}
	memcpy(text.data, line, size);
	text.data[size] = '\n';
	if (seconds)
		interrupt_after(seconds);
	done.time = nanoseconds();
	if (write(fd, text.data, size + 1) < 0)
		done.error = errno;
	done.time = nanoseconds() - done.time;
	if (seconds)
		interrupt_after(0);
	close(fd);
	return done;
}

/* Prints "TIME ok\n" or "TIME failed REASON\n". */
static void put_written(struct written done)
{
	if (done.error)
		say("%lld failed %s\n", done.time, strerror(done.error));
	else
		say("%lld ok\n", done.time);
}

static void write_files(char *lines)
{
	char *line;

	while ((line = next_line(&lines))) {
		char *value = strchrnul(line, ' ');

		if (*value)
			*value++ = 0;
		put_written(write_line(line, value, 0));
	}
}

/* ---- reading ----------------------------------------------------------------------------------------------------- */

static void put_found(const char *kind, size_t size, const char *path, const char *data)
{
	say("%s %zu ", kind, size);
	put_text(path);
	put_text("\n");
	put(data, size);
	put_text("\n");
}

static void put_failed(const char *path, int error)
{
	put_found("failed", strlen(strerror(error)), path, strerror(error));
}

static void put_file(const char *path)
{
	static struct text text;
	int fd = open(path, O_RDONLY | O_CLOEXEC), error = errno;

	if (fd >= 0) {
		error = read_all(fd, &text);
		close(fd);
	}
	if (error)
		put_failed(path, error);
	else
		put_found("file", text.size, path, text.data);
}

static void put_link(const char *path)
{
	static char target[PATH_MAX];
	ssize_t size = readlink(path, target, sizeof(target));

	if (size < 0)
		put_failed(path, errno);
	else
		put_found("link", (size_t)size, path, target);
}

static int read_files(char *lines)
{
	char *line;

	while ((line = next_line(&lines))) {
		bool is_link = !strncmp(line, "link ", 5);
		glob_t paths;

		if (!is_link && strncmp(line, "file ", 5))
			return complain("files: neither file nor link: %s\n", line);
		if (glob(line + 5, 0, NULL, &paths)) {
			put_failed(line + 5, ENOENT);
			continue;
		}
		for (size_t p = 0; p < paths.gl_pathc; p++)
			(is_link ? put_link : put_file)(paths.gl_pathv[p]);
		globfree(&paths);
	}
	return 0;
}

static int files(int count, char **words)
{
	input.data[input.size] = 0;
	if (count == 1 && !strcmp(words[0], "read"))
		return read_files(input.data);
	if (count != 1 || strcmp(words[0], "write"))
		return -1;
	write_files(input.data);
	return 0;
}
