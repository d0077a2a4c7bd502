// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * collector: prints what the kernel tells, one source after another, between markers, as the script collect does.
 *
 *   collector BOUNDARY SOURCE...
 *
 * It prints the script's bytes and starts no process, of which the script starts dozens. It reads the kernel's log by the
 * numbers of its records: none is told twice, and one that was overwritten is missed. Where the kernel lets nobody open
 * /dev/kmsg (printk.devkmsg=off) it goes by their times, as the script does.
 *
 * Exits with 0; 1 if nobody listens any more; 2 if there is no such source. What cannot be read is part of the answer.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef RUN
#define RUN "/run/memhp"
#endif
#define DUMP "/sys/kernel/debug/kernel_page_tables"
#define BLOCKS "/sys/devices/system/memory"
#define NODES "/sys/devices/system/node"
#define DAX "/sys/bus/dax/devices"
#define KCORE_BYTES 65536 /* the notes are at its start */
#define RECORD 16384	  /* no record of the log is longer: CONSOLE_EXT_LOG_MAX, PRINTK_MESSAGE_MAX */
#define CHUNK 16384
#define LINE 160
#define COUNT(array) (sizeof(array) / sizeof(*(array)))
/* kernel/printk/printk.c, do_syslog */
#define SYSLOG_READ_ALL 3
#define SYSLOG_SIZE 10

struct text {
	char *data;
	size_t size, room;
};

static const char *mark;
static int count;

static char out[65536];
static size_t waiting;

/* ---- what is printed --------------------------------------------------------------------------------------------- */

static void write_all(const char *data, size_t size)
{
	while (size) {
		ssize_t done = write(1, data, size);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			_exit(1);
		data += done;
		size -= (size_t)done;
	}
}

static void flush(void)
{
	write_all(out, waiting);
	waiting = 0;
}

static void put(const char *data, size_t size)
{
	if (size > sizeof(out) - waiting)
		flush();
	if (size > sizeof(out)) {
		write_all(data, size);
		return;
	}
	memcpy(out + waiting, data, size);
	waiting += size;
}

static void put_text(const char *text)
{
	put(text, strlen(text));
}

static void begin(const char *name)
{
	put_text("\n@@");
	put_text(mark);
	put_text(" begin ");
	put_text(name);
	put_text("\n");
}

static void end(const char *name, const char *status)
{
	count++;
	put_text("\n@@");
	put_text(mark);
	put_text(" end ");
	put_text(name);
	put_text(" ");
	put_text(status);
	put_text("\n");
}

static void __attribute__((format(printf, 2, 3))) fail(const char *name, const char *format, ...)
{
	char status[LINE] = "failed ";
	size_t said = strlen(status);
	va_list values;

	va_start(values, format);
	vsnprintf(status + said, sizeof(status) - said, format, values);
	va_end(values);
	end(name, status);
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

/* Print the lines of a file of sysfs, if it is there, each behind its path; what it holds before it vanishes counts. */
static void put_lines(int folder, const char *path)
{
	static struct text text;
	int fd = openat(folder, path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	read_all(fd, &text);
	close(fd);
	for (size_t at = 0; at < text.size;) {
		char *line = text.data + at, *stop = memchr(line, '\n', text.size - at);
		size_t size = stop ? (size_t)(stop - line) : text.size - at;

		put_text(path);
		put_text(":");
		put(line, size);
		put_text("\n");
		at += size + 1;
	}
}

static int by_name(const struct dirent **a, const struct dirent **b)
{
	return strcmp((*a)->d_name, (*b)->d_name);
}

static bool is_numbered(const char *name, const char *kind)
{
	size_t size = strlen(kind);

	return !strncmp(name, kind, size) && name[size] >= '0' && name[size] <= '9';
}

static int is_block(const struct dirent *entry)
{
	return is_numbered(entry->d_name, "memory");
}

static int is_node(const struct dirent *entry)
{
	return is_numbered(entry->d_name, "node");
}

static int is_dax(const struct dirent *entry)
{
	return !strncmp(entry->d_name, "dax", 3);
}

static int is_shown(const struct dirent *entry)
{
	return *entry->d_name != '.';
}

static void free_names(struct dirent **names, int found)
{
	while (found > 0)
		free(names[--found]);
	free(names);
}

/* ---- the sources ------------------------------------------------------------------------------------------------- */

static void file(const char *name, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), error = errno;

	begin(name);
	if (fd < 0) {
		if (error == ENOENT || error == ENOTDIR)
			end(name, "missing");
		else
			fail(name, "cat: can't open '%s': %s", path, strerror(error));
		return;
	}
	for (;;) {
		ssize_t done;

		if (sizeof(out) - waiting < CHUNK)
			flush();
		done = get(fd, out + waiting, sizeof(out) - waiting);
		if (done < 0)
			fail(name, "cat: read error: %s", strerror(errno));
		if (!done)
			end(name, "ok");
		if (done <= 0)
			break;
		waiting += (size_t)done;
	}
	close(fd);
}

static void line(const char *name, const char *path)
{
	const char *said = first_line(path);

	begin(name);
	if (said) {
		put_text(said);
		put_text("\n");
	}
	end(name, said ? "ok" : "missing");
}

static void kcore(const char *name, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), error = errno;
	size_t left = KCORE_BYTES;

	begin(name);
	flush();
	while (fd >= 0 && left) {
		ssize_t done = get(fd, out, left < sizeof(out) ? left : sizeof(out));

		error = done < 0 ? errno : 0;
		if (done <= 0)
			break;
		write_all(out, (size_t)done);
		left -= (size_t)done;
	}
	if (fd >= 0)
		close(fd);
	if (fd < 0 && error == ENOENT)
		end(name, "missing");
	else if (error)
		fail(name, "head: %s: %s", path, strerror(error));
	else
		end(name, "ok");
}

/* Print the files of each entry of a folder that is chosen, file by file; return how many entries were found. */
static int put_files(int folder, int (*chosen)(const struct dirent *), const char *const *files, size_t number,
		     struct dirent ***found)
{
	int entries = scandirat(folder, ".", found, chosen, by_name);
	char path[PATH_MAX];

	for (size_t f = 0; f < number; f++) {
		for (int e = 0; e < entries; e++) {
			snprintf(path, sizeof(path), "%s/%s", (*found)[e]->d_name, files[f]);
			put_lines(folder, path);
		}
	}
	return entries;
}

static void blocks(const char *name, const char *path)
{
	static const char *const files[] = { "state", "phys_index", "removable", "valid_zones" };
	struct dirent **found, **nodes;
	int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int blocks, places;
	char entry[PATH_MAX];

	begin(name);
	if (folder < 0) {
		end(name, "missing");
		return;
	}
	blocks = put_files(folder, is_block, files, COUNT(files), &found);
	/* A block has a link to each node that it belongs to; a link that leads nowhere is none. */
	places = scandir(NODES, &nodes, is_node, by_name);
	for (int b = 0; b < blocks; b++) {
		for (int n = 0; n < places; n++) {
			snprintf(entry, sizeof(entry), "%s/%s", found[b]->d_name, nodes[n]->d_name);
			if (faccessat(folder, entry, F_OK, 0))
				continue;
			put_text(found[b]->d_name);
			put_text("/node:");
			put_text(nodes[n]->d_name + strlen("node"));
			put_text("\n");
		}
	}
	if (places >= 0)
		free_names(nodes, places);
	if (blocks >= 0)
		free_names(found, blocks);
	close(folder);
	end(name, "ok");
}

static void dax(const char *name, const char *path)
{
	static const char *const files[] = { "resource", "size", "align", "target_node", "state" };
	struct dirent **found;
	int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int devices;
	char entry[PATH_MAX], driver[PATH_MAX];

	begin(name);
	if (folder < 0) {
		end(name, "missing");
		return;
	}
	devices = put_files(folder, is_dax, files, COUNT(files), &found);
	for (int d = 0; d < devices; d++) {
		ssize_t size;

		snprintf(entry, sizeof(entry), "%s/driver", found[d]->d_name);
		size = readlinkat(folder, entry, driver, sizeof(driver) - 1);
		if (size <= 0)
			continue;
		driver[size] = 0;
		put_text(entry);
		put_text(":");
		put_text(basename(driver));
		put_text("\n");
	}
	if (devices >= 0)
		free_names(found, devices);
	close(folder);
	end(name, "ok");
}

/* stat_refresh folds in what still waits per CPU (vmstat_refresh, mm/vmstat.c), and gives nothing to read. */
static void vmstat(const char *name, const char *path)
{
	first_line("/proc/sys/vm/stat_refresh");
	file(name, path);
}

static void parameters(const char *name, const char *path)
{
	static const char *const modules[] = { "memory_hotplug", "virtio_mem", "kmem", "device_dax", "dax_pmem", "nd_pmem",
					       "libnvdimm", "printk", "page_reporting", "shuffle" };
	int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	char entry[PATH_MAX];

	begin(name);
	if (folder < 0) {
		end(name, "missing");
		return;
	}
	for (size_t m = 0; m < COUNT(modules); m++) {
		struct dirent **found;
		int files;

		snprintf(entry, sizeof(entry), "%s/parameters", modules[m]);
		files = scandirat(folder, entry, &found, is_shown, by_name);
		for (int f = 0; f < files; f++) {
			snprintf(entry, sizeof(entry), "%s/parameters/%s", modules[m], found[f]->d_name);
			put_lines(folder, entry);
		}
		if (files >= 0)
			free_names(found, files);
	}
	close(folder);
	end(name, "ok");
}

/* The first lines of what tells what this kernel does (FILES, harness/arch/features.py). */
static void settings(const char *name, const char *path)
{
	static const char *const files[] = { "/proc/pagetypeinfo", "/proc/sys/vm/hugetlb_optimize_vmemmap" };

	(void)path;
	begin(name);
	for (size_t f = 0; f < COUNT(files); f++) {
		const char *said = first_line(files[f]);

		if (said) {
			put_text(files[f]);
			put_text(":");
			put_text(said);
			put_text("\n");
		}
	}
	end(name, "ok");
}

static void config(const char *name, const char *path)
{
	const char *release = first_line(path);
	char boot[LINE], modules[LINE];

	snprintf(boot, sizeof(boot), "/boot/config-%s", release ? release : "");
	snprintf(modules, sizeof(modules), "/lib/modules/%s/config", release ? release : "");
	if (!access("/proc/config.gz", F_OK))
		file(name, "/proc/config.gz");
	else
		file(name, access(boot, F_OK) ? modules : boot);
}

/* ---- the kernel's log -------------------------------------------------------------------------------------------- */

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

static void kernel_log(const char *name, const char *path)
{
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC), error = errno;
	bool lost;

	begin(name);
	if (fd >= 0) {
		long long known = recall(RUN "/next");
		unsigned long long next = known < 0 ? 0 : (unsigned long long)known;

		lost = put_records(fd, &next);
		close(fd);
		keep(RUN "/next", (long long)next);
	} else if (error == ENOENT) {
		end(name, "missing");
		return;
	} else {
		long long since = recall(RUN "/newest");
		int size = klogctl(SYSLOG_SIZE, NULL, 0);
		char *text = calloc(1, size < 0 ? 1 : (size_t)size + 1);

		if (size < 0 || !text || klogctl(SYSLOG_READ_ALL, text, size) < 0) {
			fail(name, "%s: %s", path, strerror(errno));
			free(text);
			return;
		}
		lost = put_newer(text, &since);
		free(text);
		keep(RUN "/newest", since);
	}
	end(name, lost ? "lost" : "ok");
}

/* ---- the page tables --------------------------------------------------------------------------------------------- */

static struct {
	struct text text;
	int opening, reading; /* errno */
} tables;

static void *read_tables(void *unused)
{
	int fd = open(DUMP, O_RDONLY | O_CLOEXEC);

	tables.opening = fd < 0 ? errno : 0;
	tables.reading = fd < 0 ? 0 : read_all(fd, &tables.text);
	if (fd >= 0)
		close(fd);
	return unused;
}

static bool reads_tables;
static pthread_t reader;

/* They take the kernel as long as everything else together: it walks them while the rest is read. */
static void start_tables(void)
{
	reads_tables = !pthread_create(&reader, NULL, read_tables, NULL);
	if (!reads_tables)
		read_tables(NULL);
}

static void ptdump(const char *name, const char *path)
{
	/* What is there already can go its way meanwhile. */
	flush();
	if (reads_tables)
		pthread_join(reader, NULL);
	reads_tables = false;
	begin(name);
	if (tables.opening == ENOENT)
		end(name, "missing");
	else if (tables.opening)
		fail(name, "cat: can't open '%s': %s", path, strerror(tables.opening));
	else if (tables.reading)
		fail(name, "cat: read error: %s", strerror(tables.reading));
	else {
		put(tables.text.data, tables.text.size);
		end(name, "ok");
	}
}

static const struct {
	const char *name;
	void (*print)(const char *name, const char *path);
	const char *path;
} sources[] = {
	{ "boot_id", line, "/proc/sys/kernel/random/boot_id" },
	{ "uptime", line, "/proc/uptime" },
	{ "iomem", file, "/proc/iomem" },
	{ "meminfo", file, "/proc/meminfo" },
	{ "zoneinfo", file, "/proc/zoneinfo" },
	{ "slabinfo", file, "/proc/slabinfo" },
	{ "cmdline", file, "/proc/cmdline" },
	{ "auxv", file, "/proc/self/auxv" },
	{ "blocks", blocks, BLOCKS },
	{ "dax", dax, DAX },
	{ "vmstat", vmstat, "/proc/vmstat" },
	{ "parameters", parameters, "/sys/module" },
	{ "settings", settings, NULL },
	{ "config", config, "/proc/sys/kernel/osrelease" },
	{ "ptdump", ptdump, DUMP },
	{ "auto_online", line, BLOCKS "/auto_online_blocks" },
	{ "dmesg", kernel_log, "/dev/kmsg" },
	{ "release", line, "/proc/sys/kernel/osrelease" },
	{ "block_size", line, BLOCKS "/block_size_bytes" },
	{ "kcore", kcore, "/proc/kcore" },
};

static bool print_source(const char *name)
{
	for (size_t s = 0; s < COUNT(sources); s++) {
		if (!strcmp(name, sources[s].name)) {
			sources[s].print(name, sources[s].path);
			return true;
		}
	}
	return false;
}

int main(int argc, char **argv)
{
	char number[LINE];

	if (argc < 2) {
		fputs("usage: collector BOUNDARY SOURCE...\n", stderr);
		return 2;
	}
	mark = argv[1];
	for (int s = 2; s < argc && !reads_tables; s++)
		if (!strcmp(argv[s], "ptdump"))
			start_tables();
	for (int s = 2; s < argc; s++) {
		if (!print_source(argv[s])) {
			flush();
			fprintf(stderr, "collector: no source %s\n", argv[s]);
			_exit(2);
		}
	}
	snprintf(number, sizeof(number), "\n@@%s done %d\n", mark, count);
	put_text(number);
	flush();
	return 0;
}
