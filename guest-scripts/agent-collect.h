// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Part of agent.c: prints what the kernel tells, one source after another, between markers, as the script collect does.
 */
#ifndef DUMP
#define DUMP "/sys/kernel/debug/kernel_page_tables"
#endif
#define NODES "/sys/devices/system/node"
#define DAX "/sys/bus/dax/devices"
#define KCORE_BYTES 65536 /* the notes are at its start */

static const char *mark;
static int told;

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
	told++;
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

/* Print the next bytes of a file, at most so many; returns 0 or the errno. */
static int copy(int fd, size_t limit)
{
	while (limit) {
		ssize_t done;

		if (sizeof(out) - waiting < CHUNK)
			flush();
		done = get(fd, out + waiting, limit < sizeof(out) - waiting ? limit : sizeof(out) - waiting);
		if (done <= 0)
			return done ? errno : 0;
		waiting += (size_t)done;
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

#include "agent-log.h"

/* ---- the page tables --------------------------------------------------------------------------------------------- */

static struct {
	struct text text;
	int opening, reading; /* errno */
} tables;

/*
 * The kernel prints the dump as one record, into a buffer of one page. When that is full it begins anew with one of
 * twice the size (seq_read_iter, fs/seq_file.c), and walks the tables once for each. The buffer goes with the file: one
 * that stays open is as large as it was in the end, and the tables are walked once.
 */
static int dump = -1;
static size_t buffer;
/* The blocks that were there first: as many directories. */
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

/* A buffer may lie in memory that was added, whose removal it would prevent: that one must not stay. */
static bool may_stay(void)
{
	size_t needed = (size_t)sysconf(_SC_PAGESIZE);
	bool grown;

	while (needed <= tables.text.size)
		needed *= 2;
	grown = needed > buffer;
	buffer = needed > buffer ? needed : buffer;
	return stays && !tables.reading && (!grown || count_blocks() == first_blocks);
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
	if (!may_stay()) {
		close(dump);
		dump = -1;
	}
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

static int collect(const char *boundary, char **names, int count)
{
	char number[LINE];

	mark = boundary;
	told = 0;
	for (int n = 0; n < count; n++)
		if (find_source(names[n]) == COUNT(sources))
			return complain("collect: no source %s\n", names[n]);
	for (int n = 0; n < count && !reads_tables; n++)
		if (!strcmp(names[n], "ptdump"))
			start_tables();
	for (int n = 0; n < count; n++) {
		size_t s = find_source(names[n]);

		sources[s].print(sources[s].name, sources[s].path);
	}
	snprintf(number, sizeof(number), "\n@@%s done %d\n", mark, told);
	put_text(number);
	return 0;
}
