// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Part of agent.c: prints files of the kernel, one source after another, between markers, like the script collect.
 */
#ifndef DUMP
#define DUMP "/sys/kernel/debug/kernel_page_tables"
#endif
#define NODES "/sys/devices/system/node"
#define DAX "/sys/bus/dax/devices"
#define KCORE_BYTES 65536 /* the notes are at its start */

static const char *mark;
static int printed;

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
	printed++;
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
	size_t prefix = strlen(status);
	va_list values;

	va_start(values, format);
	vsnprintf(status + prefix, sizeof(status) - prefix, format, values);
	va_end(values);
	end(name, status);
}

/* Prints the lines of a sysfs file as "PATH:LINE"; nothing if it does not exist, what was read if it vanishes. */
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

/* ---- sources ----------------------------------------------------------------------------------------------------- */

/* Prints the next bytes of a file, at most limit; returns 0 or the errno. */
static int copy(int fd, size_t limit)
{
	while (limit) {
		ssize_t done;

		if (sizeof(out) - buffered < CHUNK)
			flush();
		done = get(fd, out + buffered, limit < sizeof(out) - buffered ? limit : sizeof(out) - buffered);
		if (done <= 0)
			return done ? errno : 0;
		buffered += (size_t)done;
		limit -= (size_t)done;
	}
	return 0;
}

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
	error = copy(fd, SIZE_MAX);
	close(fd);
	if (error)
		fail(name, "cat: read error: %s", strerror(error));
	else
		end(name, "ok");
}

static void line(const char *name, const char *path)
{
	const char *text = first_line(path);

	begin(name);
	if (text) {
		put_text(text);
		put_text("\n");
	}
	end(name, text ? "ok" : "missing");
}

static void kcore(const char *name, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), error = errno;

	begin(name);
	if (fd < 0 && error == ENOENT) {
		end(name, "missing");
		return;
	}
	if (fd >= 0) {
		error = copy(fd, KCORE_BYTES);
		close(fd);
	}
	if (error)
		fail(name, "head: %s: %s", path, strerror(error));
	else
		end(name, "ok");
}

/* Prints the files of the chosen entries of a folder, file by file; returns the number of entries, -1 on error. */
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

static void memory_blocks(const char *name, const char *path)
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
	/* A block has a symlink to each node that it belongs to. A dangling one does not count. */
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

/* Reading stat_refresh folds in the per-CPU differences (vmstat_refresh, mm/vmstat.c); it returns no text. */
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

/* First lines of the files from which harness/arch/features.py (FILES) reads the kernel's features. */
static void settings(const char *name, const char *path)
{
	static const char *const files[] = { "/proc/pagetypeinfo", "/proc/sys/vm/hugetlb_optimize_vmemmap" };

	(void)path;
	begin(name);
	for (size_t f = 0; f < COUNT(files); f++) {
		const char *text = first_line(files[f]);

		if (text) {
			put_text(files[f]);
			put_text(":");
			put_text(text);
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

#include "agent-log.h"

/* ---- page tables ------------------------------------------------------------------------------------------------- */

static struct {
	struct text text;
	int opening, reading; /* errno */
} tables;

/*
 * The kernel prints the dump as one seq_file record, into a buffer that starts with one page. When the buffer is full,
 * it doubles it and starts again (seq_read_iter, fs/seq_file.c), with another walk of the tables. The buffer lives as
 * long as the open file, so reading a file that stayed open takes one walk.
 */
static int dump = -1;
static size_t buffer;
/* Links of the blocks' folder when the agent started: one for each block, and a constant. */
static nlink_t first_blocks;

static nlink_t count_blocks(void)
{
	struct stat folder;

	return stat(BLOCKS, &folder) ? 0 : folder.st_nlink;
}

static void note_blocks(void)
{
	first_blocks = count_blocks();
}

/* Whether dump may stay open: a buffer in hot-plugged memory would prevent the removal of that memory. */
static bool may_stay_open(void)
{
	size_t needed = (size_t)sysconf(_SC_PAGESIZE);
	bool grown;

	while (needed <= tables.text.size)
		needed *= 2;
	grown = needed > buffer;
	buffer = needed > buffer ? needed : buffer;
	return persistent && !tables.reading && (!grown || count_blocks() == first_blocks);
}

static void *read_tables(void *unused)
{
	if (dump >= 0) {
		lseek(dump, 0, SEEK_SET);
	} else {
		dump = open(DUMP, O_RDONLY | O_CLOEXEC);
		buffer = 0;
	}
	tables.opening = dump < 0 ? errno : 0;
	if (dump < 0)
		return unused;
	tables.reading = read_all(dump, &tables.text);
	if (!may_stay_open()) {
		close(dump);
		dump = -1;
	}
	return unused;
}

static bool reads_tables;
static pthread_t reader;

/* The page tables take as long as all other sources together, so another thread reads them meanwhile. */
static void start_tables(void)
{
	reads_tables = !pthread_create(&reader, NULL, read_tables, NULL);
	if (!reads_tables)
		read_tables(NULL);
}

static void ptdump(const char *name, const char *path)
{
	/* The client can receive the sources before this one meanwhile. */
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
	{ "blocks", memory_blocks, BLOCKS },
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

static size_t find_source(const char *name)
{
	size_t s = 0;

	while (s < COUNT(sources) && strcmp(name, sources[s].name))
		s++;
	return s;
}

static int collect(int count, char **words)
{
	char number[LINE];

	if (!count)
		return -1;
	mark = words[0];
	printed = 0;
	for (int n = 1; n < count; n++)
		if (find_source(words[n]) == COUNT(sources))
			return complain("collect: no source %s\n", words[n]);
	for (int n = 1; n < count && !reads_tables; n++)
		if (!strcmp(words[n], "ptdump"))
			start_tables();
	for (int n = 1; n < count; n++) {
		size_t s = find_source(words[n]);

		sources[s].print(sources[s].name, sources[s].path);
	}
	snprintf(number, sizeof(number), "\n@@%s done %d\n", mark, printed);
	put_text(number);
	return 0;
}
