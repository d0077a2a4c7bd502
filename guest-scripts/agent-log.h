// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Part of agent.c: prints the lines of the kernel log that are new since the last request, in the format of dmesg -r.
 *
 * It uses the sequence numbers of the records: no record is printed twice, and an overwritten record is noticed. If
 * /dev/kmsg cannot be opened (printk.devkmsg=off), it uses their time stamps, like the script collect.
 */
#define MAX_RECORD 16384 /* at least CONSOLE_EXT_LOG_MAX and PRINTK_MESSAGE_MAX */
/* kernel/printk/printk.c, do_syslog */
#define SYSLOG_READ_ALL 3
#define SYSLOG_SIZE 10

/* The number that an earlier request saved; -1 if there is none. */
static long long load_number(const char *path)
{
	const char *text = first_line(path);

	return text ? atoll(text) : -1;
}

static void save_number(const char *path, long long number)
{
	char text[LINE];
	int fd, size = snprintf(text, sizeof(text), "%lld\n", number);

	mkdir(RUN, 0755);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	/* If it cannot be saved, the next request prints the same lines again. */
	if (fd >= 0) {
		if (write(fd, text, (size_t)size) < 0)
			errno = 0;
		close(fd);
	}
}

/* Undoes msg_add_ext_text (kernel/printk/printk.c), which writes unprintable bytes as \xHH. */
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
 * Prints one record, "LEVEL,NUMBER,MICROSECONDS,FLAGS[,caller=CALLER];TEXT\n" with optional lines after it, in the
 * format of syslog(2) (record_print_text): "<LEVEL>[SECONDS]", "[CALLER]" if the record has it, and a line of TEXT.
 */
static void put_record(char *record, size_t size)
{
	unsigned long long level, time;
	char prefix[LINE], caller[32], *text = memchr(record, ';', size), *field, *stop;
	int length;

	if (!text || sscanf(record, "%llu,%*u,%llu", &level, &time) != 2)
		return;
	*text++ = 0;
	size -= (size_t)(text - record);
	length = snprintf(prefix, sizeof(prefix), "<%llu>[%5llu.%06llu]", level, time / 1000000, time % 1000000);
	field = strstr(record, ",caller=");
	if (field && sscanf(field, ",caller=%31[^,]", caller) == 1)
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

/* Prints the records from number next on; returns whether one was lost. */
static bool put_records(int fd, unsigned long long *next)
{
	static char record[MAX_RECORD + 1];
	unsigned long long number;
	bool lost = false;

	for (;;) {
		ssize_t size = get(fd, record, MAX_RECORD);
		char *comma;

		/* A record was overwritten before it was read: the gap in the numbers will show it. */
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

/* Prints the lines that are newer than since; returns whether the log's oldest line is newer, too. */
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

/* Kept open by a persistent agent, so that it does not read old records again; position is the next number. */
static int log_file = -1;
static unsigned long long position;

static bool put_new_records(void)
{
	long long known = load_number(RUN "/next");
	unsigned long long next = known < 0 ? 0 : (unsigned long long)known;
	bool lost;

	/* Another agent may have read the log meanwhile, or the saved number was deleted. */
	if (next < position)
		lseek(log_file, 0, SEEK_SET);
	lost = put_records(log_file, &next);
	position = next;
	if ((long long)next != known)
		save_number(RUN "/next", (long long)next);
	return lost;
}

static bool put_new_lines(int *error)
{
	long long since = load_number(RUN "/newest");
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
		save_number(RUN "/newest", since);
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
	lost = error ? put_new_lines(&error) : put_new_records();
	if (error)
		fail(name, "%s: %s", path, strerror(error));
	else
		end(name, lost ? "lost" : "ok");
}
