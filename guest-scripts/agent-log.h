// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Part of agent.c: the lines of the kernel's log that nobody has asked for yet, as dmesg -r has them.
 *
 * It goes by the numbers of the log's records: none is told twice, and one that was overwritten is missed. Where the
 * kernel lets nobody open /dev/kmsg (printk.devkmsg=off) it goes by their times, as the script collect does.
 */
#define RECORD 16384 /* no record is longer: CONSOLE_EXT_LOG_MAX, PRINTK_MESSAGE_MAX */
/* kernel/printk/printk.c, do_syslog */
#define SYSLOG_READ_ALL 3
#define SYSLOG_SIZE 10

/* A number that one look leaves to the next; -1 if there was none. */
static long long recall(const char *path)
{
	const char *said = first_line(path);

	return said ? atoll(said) : -1;
}

static void keep(const char *path, long long number)
{
	char text[LINE];
	int fd, size = snprintf(text, sizeof(text), "%lld\n", number);

	mkdir(RUN, 0755);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	/* What cannot be kept is told again. */
	if (fd >= 0) {
		if (write(fd, text, (size_t)size) < 0)
			errno = 0;
		close(fd);
	}
}

/* Undo what msg_add_ext_text did (kernel/printk/printk.c): every byte that is not plain is \xHH. */
static size_t unescape(char *text, size_t size)
{
	size_t to = 0;

	for (size_t at = 0; at < size; at++, to++) {
		unsigned int byte;

		text[to] = text[at];
		if (text[at] == '\\' && at + 3 < size && text[at + 1] == 'x' && sscanf(text + at + 2, "%2x", &byte) == 1) {
			text[to] = (char)byte;
			at += 3;
		}
	}
	return to;
}

/*
 * Print one record, "LEVEL,NUMBER,MICROSECONDS,FLAGS[,caller=WHO];TEXT\n" and what else there is, as the system call
 * would (record_print_text): every line of it behind "<LEVEL>[SECONDS]" and, if the kernel tells it, who said it.
 */
static void put_record(char *record, size_t size)
{
	unsigned long long level, time;
	char prefix[LINE], caller[32], *text = memchr(record, ';', size), *who, *stop;
	int length;

	if (!text || sscanf(record, "%llu,%*u,%llu", &level, &time) != 2)
		return;
	*text++ = 0;
	size -= (size_t)(text - record);
	length = snprintf(prefix, sizeof(prefix), "<%llu>[%5llu.%06llu]", level, time / 1000000, time % 1000000);
	who = strstr(record, ",caller=");
	if (who && sscanf(who, ",caller=%31[^,]", caller) == 1)
		length += snprintf(prefix + length, sizeof(prefix) - (size_t)length, "[%6s]", caller);
	prefix[length++] = ' ';
	stop = memchr(text, '\n', size);
	size = unescape(text, stop ? (size_t)(stop - text) : size);
	do {
		size_t part;

		stop = memchr(text, '\n', size);
		part = stop ? (size_t)(stop - text) : size;
		put(prefix, (size_t)length);
		put(text, part);
		put_text("\n");
		text += part + 1;
		size -= part + !!stop;
	} while (stop);
}

/* The records from number next on, and whether one was missed. */
static bool put_records(int fd, unsigned long long *next)
{
	static char record[RECORD + 1];
	unsigned long long number;
	bool lost = false;

	for (;;) {
		ssize_t size = get(fd, record, RECORD);
		char *comma;

		/* Overwritten before it was read: the next one's number tells. */
		if (size < 0 && errno == EPIPE)
			continue;
		if (size <= 0)
			return lost;
		record[size] = 0;
		comma = strchr(record, ',');
		number = comma ? strtoull(comma + 1, NULL, 10) : 0;
		if (!comma || number < *next)
			continue;
		lost |= number > *next;
		*next = number + 1;
		put_record(record, (size_t)size);
	}
}

static long long microseconds(const char *line)
{
	unsigned long long seconds, parts;

	return sscanf(line, "<%*u>[%llu.%llu]", &seconds, &parts) == 2 ? (long long)(seconds * 1000000 + parts) : -1;
}

/* The lines that are newer than since, and whether even the log's oldest is. */
static bool put_newer(char *text, long long *since)
{
	long long first = -1, newest = *since;
	bool fresh = newest < 0;

	for (char *line = text, *stop; *line; line = stop + 1) {
		long long time = microseconds(line);

		stop = strchrnul(line, '\n');
		first = line == text ? time : first;
		if (time >= 0) {
			newest = time;
			fresh = time > *since;
		}
		if (fresh) {
			put(line, (size_t)(stop - line));
			put_text("\n");
		}
		if (!*stop)
			break;
	}
	fresh = first > (*since < 0 ? 0 : *since);
	*since = newest;
	return fresh;
}

/* Open as long as the agent stays: what it has read once it need not pass over again. */
static int log_file = -1;
static unsigned long long passed;

static bool put_fresh(void)
{
	long long known = recall(RUN "/next");
	unsigned long long next = known < 0 ? 0 : (unsigned long long)known;
	bool lost;

	/* Somebody else may have looked, or have it forgotten. */
	if (next < passed)
		lseek(log_file, 0, SEEK_SET);
	lost = put_records(log_file, &next);
	passed = next;
	if ((long long)next != known)
		keep(RUN "/next", (long long)next);
	return lost;
}

static bool put_fresh_by_time(int *error)
{
	long long since = recall(RUN "/newest");
	int size = klogctl(SYSLOG_SIZE, NULL, 0);
	char *text = calloc(1, size < 0 ? 1 : (size_t)size + 1);
	bool lost = false;

	*error = 0;
	if (size < 0 || !text || klogctl(SYSLOG_READ_ALL, text, size) < 0)
		*error = errno;
	else
		lost = put_newer(text, &since);
	free(text);
	if (!*error)
		keep(RUN "/newest", since);
	return lost;
}

static void kernel_log(const char *name, const char *path)
{
	int error = 0;
	bool lost;

	begin(name);
	if (log_file < 0) {
		log_file = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
		error = log_file < 0 ? errno : 0;
	}
	if (error == ENOENT) {
		end(name, "missing");
		return;
	}
	lost = error ? put_fresh_by_time(&error) : put_fresh();
	if (error)
		fail(name, "%s: %s", path, strerror(error));
	else
		end(name, lost ? "lost" : "ok");
}
