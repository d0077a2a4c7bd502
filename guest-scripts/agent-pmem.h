// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Part of agent.c: configures persistent memory through sysfs, like the script pmem.
 */
#ifndef DEV
#define DEV "/dev"
#endif
#ifndef FAULTS
#define FAULTS "/sys/kernel/debug"
#endif
#define ND BUS "/nd"
#define DAX_BUS BUS "/dax"
#define INFO_BLOCK 8192 /* struct nd_pfn_sb is in the second page */
#define APPEAR_MS 2000
#define REFUSED 3
#define CANNOT 4
#define NO_DEVICE 5
#define NO_FILE 6

typedef char short_text[LINE];

/* How many more allocations one that was to fail would have needed. */
static unsigned long missing_allocations;

static void put_missing(void)
{
	if (missing_allocations)
		say("left %lu\n", missing_allocations);
}

static int __attribute__((format(printf, 1, 2))) refuse(const char *format, ...)
{
	char text[2 * LINE];
	va_list values;

	va_start(values, format);
	vsnprintf(text, sizeof(text), format, values);
	va_end(values);
	say("%s\n", text);
	put_missing();
	return REFUSED;
}

static int write_or_refuse(const char *path, const char *value)
{
	int error = write_line(path, value, 0).error;

	return error ? refuse("writing '%s' to %s: %s", value, path, strerror(error)) : 0;
}

/* Sets value to the file's first line, "" if it cannot be read. */
static void content(short_text value, const char *path)
{
	const char *text = first_line(path);

	snprintf(value, sizeof(short_text), "%s", text ? text : "");
}

/* Sets driver to the driver of a device, "" if there is none. */
static void driver_of(short_text driver, const char *bus, const char *device)
{
	snprintf(driver, sizeof(short_text), "%s", link_name(path_of(BUS "/%s/devices/%s/driver", bus, device)));
}

static int need(const char *bus, const char *driver)
{
	if (load_driver(bus, driver))
		return 0;
	say("no driver %s\n", driver);
	return CANNOT;
}

static bool is_there(void *path)
{
	return exists(path);
}

/* Waits for a device, since pciehp first powers up the slot of a hot-plugged one. */
static int find_device(const char *bus, const char *name)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), BUS "/%s/devices/%s", bus, name);
	if (await(is_there, path, now() + APPEAR_MS))
		return 0;
	say("no %s\n", name);
	return NO_DEVICE;
}

static int list_namespaces(void)
{
	glob_t paths;

	if (glob(ND "/devices/namespace*", 0, NULL, &paths))
		return 0;
	for (size_t p = 0; p < paths.gl_pathc; p++) {
		const char *path = paths.gl_pathv[p], *name = basename(path), *number = name + strlen("namespace");
		short_text size, mode, holder, resource;

		content(size, path_of("%s/size", path));
		content(mode, path_of("%s/mode", path));
		content(holder, path_of("%s/holder", path));
		content(resource, path_of("%s/resource", path));
		if (strcmp(size, "0"))
			say("%s region%.*s %s %s %s %s\n", name, (int)strcspn(number, "."), number, mode, size, resource,
			    *holder ? holder : "-");
	}
	globfree(&paths);
	return 0;
}

static int unbind(const char *bus, const char *device)
{
	short_text driver;

	driver_of(driver, bus, device);
	return *driver ? write_or_refuse(path_of(BUS "/%s/drivers/%s/unbind", bus, driver), device) : 0;
}

/* Unbinds a namespace and the nvdimm device that holds it; refused while its dax device is system RAM. */
static int release(const char *namespace)
{
	short_text dax, holder, driver;
	int status;

	snprintf(dax, sizeof(dax), "dax%s", namespace + strlen("namespace"));
	driver_of(driver, "dax", dax);
	if (!strcmp(driver, "kmem"))
		return refuse("%s is in use as system RAM", dax);
	content(holder, path_of(ND "/devices/%s/holder", namespace));
	if (*holder) {
		status = unbind("nd", holder);
		status = status ? status : write_or_refuse(path_of(ND "/devices/%s/namespace", holder), "");
		if (status)
			return status;
	}
	return unbind("nd", namespace);
}

/* Writes values to files of a device, in order: pairs of name and value, and NULL. */
static int set_files(const char *device, const char *const *values)
{
	int status = 0;

	for (; *values && !status; values += 2)
		status = write_or_refuse(path_of(ND "/devices/%s/%s", device, values[0]), values[1]);
	return status;
}

static int make_devdax(const char *namespace, const char *mode, const char *align)
{
	short_text region, dax, seed, uuid, driver;
	const char *values[] = { "mode", mode, "align", align, "uuid", uuid, "namespace", namespace, NULL };
	const char *number = namespace + strlen("namespace");
	int status = find_device("nd", namespace);

	status = status ? status : need("nd", "dax_pmem");
	status = status ? status : need("dax", "device_dax");
	status = status ? status : release(namespace);
	if (status)
		return status;
	snprintf(region, sizeof(region), "region%.*s", (int)strcspn(number, "."), number);
	snprintf(dax, sizeof(dax), "dax%s", number);
	content(seed, path_of(ND "/devices/%s/dax_seed", region));
	if (!*seed)
		return refuse("%s has no dax_seed", region);
	content(uuid, "/proc/sys/kernel/random/uuid");
	status = set_files(seed, values);
	status = status ? status : write_or_refuse(ND "/drivers/dax_pmem/bind", seed);
	if (status)
		return status;
	driver_of(driver, "dax", dax);
	if (strcmp(driver, "device_dax"))
		return refuse("%s is not bound to device_dax (driver: %s)", dax, *driver ? driver : "none");
	say("%s\n", dax);
	return 0;
}

static int clear_info_block(const char *namespace)
{
	static const char zeros[INFO_BLOCK];
	int status = 0, error;
	glob_t paths;

	if (glob(path_of(ND "/devices/%s/block/*", namespace), 0, NULL, &paths))
		return 0;
	for (size_t p = 0; p < paths.gl_pathc && !status; p++) {
		int fd = open(path_of(DEV "/%s", basename(paths.gl_pathv[p])), O_WRONLY | O_CLOEXEC);

		errno = fd < 0 ? errno : 0;
		if (fd >= 0 && write(fd, zeros, sizeof(zeros)) == sizeof(zeros) && !fsync(fd))
			errno = 0;
		else if (fd >= 0 && !errno)
			errno = EIO;
		error = errno;
		if (fd >= 0)
			close(fd);
		status = error ? refuse("clearing %s: %s", namespace, strerror(error)) : 0;
	}
	globfree(&paths);
	return status;
}

static int make_raw(const char *namespace)
{
	static const char *const forced[] = { "force_raw", "1", NULL }, *const as_usual[] = { "force_raw", "0", NULL };
	int status = find_device("nd", namespace);

	status = status ? status : need("nd", "nd_pmem");
	status = status ? status : release(namespace);
	status = status ? status : set_files(namespace, forced);
	status = status ? status : write_or_refuse(ND "/drivers/nd_pmem/bind", namespace);
	status = status ? status : clear_info_block(namespace);
	status = status ? status : write_or_refuse(ND "/drivers/nd_pmem/unbind", namespace);
	status = status ? status : set_files(namespace, as_usual);
	status = status ? status : write_or_refuse(ND "/drivers/nd_pmem/bind", namespace);
	if (!status)
		say("%s\n", namespace);
	return status;
}

static void write_number(int fd, unsigned long number)
{
	short_text text;
	int size = snprintf(text, sizeof(text), "%lu\n", number);

	/* Not an error: without the allocation that fails, the result says so. */
	if (pwrite(fd, text, (size_t)size, 0) < 0)
		errno = 0;
}

/*
 * Writes value while an allocation of this thread fails, the number-th of its kind (fail-nth, lib/fault-inject.c).
 * Allocations of the other kind are ignored and not counted (ignore-gfp-wait). Nothing else may be allocated meanwhile.
 */
static int write_failing(const char *path, const char *value, unsigned long number, const char *kind)
{
	static const char *const kinds[] = { "failslab", "fail_page_alloc" };
	int file, nth;
	short_text text, line;
	ssize_t size;

	for (size_t k = 0; k < COUNT(kinds); k++) {
		write_line(path_of(FAULTS "/%s/ignore-gfp-wait", kinds[k]), strcmp(kinds[k], kind) ? "Y" : "N", 0);
		write_line(path_of(FAULTS "/%s/verbose", kinds[k]), "0", 0);
	}
	if (!exists(path_of(FAULTS "/%s", kind))) {
		say("no %s\n", kind);
		return CANNOT;
	}
	write_line(path_of(FAULTS "/%s/min-order", kind), "0", 0);
	snprintf(line, sizeof(line), "%s\n", value);
	file = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
	nth = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	if (nth < 0) {
		close(file);
		say("no fail-nth\n");
		return CANNOT;
	}
	write_number(nth, number);
	/* Whether the driver is bound afterwards shows how it ended. */
	if (write(file, line, strlen(line)) < 0)
		errno = 0;
	/* It counts down to 0, at which an allocation fails (should_fail_ex). */
	size = pread(nth, text, sizeof(text) - 1, 0);
	write_number(nth, 0);
	text[size < 0 ? 0 : size] = 0;
	missing_allocations = strtoul(text, NULL, 10);
	close(nth);
	close(file);
	return 0;
}

/* Where the struct pages of a dax device's memory will be (memmap_on_memory_store, drivers/dax/bus.c, since v6.8). */
static int set_own_memmap(const char *dax, const char *value)
{
	return write_or_refuse(path_of(DAX_BUS "/devices/%s/memmap_on_memory", dax), value);
}

/* Undoes what is left of a refused binding. After a failed allocation, kmem may not even know the name. */
static int undo_kmem(const char *dax, bool own)
{
	int status = own ? set_own_memmap(dax, "0") : 0;

	if (status)
		return status;
	write_line(DAX_BUS "/drivers/kmem/remove_id", dax, 0);
	status = write_or_refuse(DAX_BUS "/drivers/device_dax/bind", dax);
	return status ? status : refuse("kmem did not bind %s: see the kernel log", dax);
}

/* kind is NULL if no allocation has to fail. */
static int bind_kmem(const char *dax, unsigned long number, const char *kind, bool own)
{
	short_text driver;
	int status = find_device("dax", dax);

	status = status ? status : need("dax", "kmem");
	if (status)
		return status;
	driver_of(driver, "dax", dax);
	if (!strcmp(driver, "kmem"))
		return refuse("%s is system RAM already", dax);
	status = unbind("dax", dax);
	status = status || !own ? status : set_own_memmap(dax, "1");
	if (status)
		return status;
	/* Writing to new_id also binds the device, even if the driver knows the name already (do_id_store,
	 * drivers/dax/bus.c). */
	status = kind ? write_failing(DAX_BUS "/drivers/kmem/new_id", dax, number, kind) :
			write_or_refuse(DAX_BUS "/drivers/kmem/new_id", dax);
	if (status)
		return status;
	driver_of(driver, "dax", dax);
	if (strcmp(driver, "kmem"))
		return undo_kmem(dax, own);
	say("%s\n", dax);
	put_missing();
	return 0;
}

static int set_dax_state(const char *dax, const char *state, long seconds)
{
	int status = find_device("dax", dax), error;

	if (status)
		return status;
	if (!exists(path_of(DAX_BUS "/devices/%s/state", dax))) {
		say("%s/state\n", dax);
		return NO_FILE;
	}
	error = write_line(path_of(DAX_BUS "/devices/%s/state", dax), state, seconds).error;
	if (error)
		return refuse("writing '%s' to %s/state: %s", state, dax, strerror(error));
	say("%s %s\n", dax, state);
	return 0;
}

/* The number of the first existing memory block of a dax device, from the index-th on; -1 if there is none. */
static long long next_block(const char *dax, unsigned long long *index)
{
	unsigned long long size, start, end;
	short_text text;

	content(text, BLOCKS "/block_size_bytes");
	size = strtoull(text, NULL, 16);
	content(text, path_of(DAX_BUS "/devices/%s/resource", dax));
	start = strtoull(text, NULL, 0);
	content(text, path_of(DAX_BUS "/devices/%s/size", dax));
	end = start + strtoull(text, NULL, 0);
	for (; size && start / size + !!(start % size) + *index + 1 <= end / size; ++*index) {
		unsigned long long block = start / size + !!(start % size) + *index;

		if (exists(block_file(block, "")))
			return (long long)block;
	}
	return -1;
}

static int refuse_kept_blocks(const char *dax)
{
	unsigned long long index = 0;
	long long block;
	char list[LINE] = "";
	size_t size = 0;

	while ((block = next_block(dax, &index)) >= 0 && size + 24 < sizeof(list)) {
		size += (size_t)snprintf(list + size, sizeof(list) - size, " %lld", block);
		index++;
	}
	return *list ? refuse("the kernel kept memory blocks:%s", list) : 0;
}

/* Unbinding while a block is online leaks the memory until the next boot (dev_dax_kmem_remove, drivers/dax/kmem.c). */
static int refuse_online_blocks(const char *dax)
{
	unsigned long long index = 0;
	long long block;
	short_text state;

	for (; (block = next_block(dax, &index)) >= 0; index++) {
		content(state, block_file((unsigned long long)block, "/state"));
		if (strcmp(state, "offline"))
			return refuse("memory%lld is %s", block, state);
	}
	return 0;
}

static int unbind_kmem(const char *dax)
{
	short_text driver;
	int status = find_device("dax", dax);

	status = status ? status : need("dax", "device_dax");
	if (status)
		return status;
	driver_of(driver, "dax", dax);
	if (strcmp(driver, "kmem"))
		return refuse("%s is not system RAM (driver: %s)", dax, *driver ? driver : "none");
	status = refuse_online_blocks(dax);
	status = status ? status : write_or_refuse(DAX_BUS "/drivers/kmem/unbind", dax);
	status = status ? status : write_or_refuse(DAX_BUS "/drivers/kmem/remove_id", dax);
	status = status ? status : refuse_kept_blocks(dax);
	if (!status && exists(path_of(DAX_BUS "/devices/%s/memmap_on_memory", dax)))
		status = set_own_memmap(dax, "0");
	status = status ? status : write_or_refuse(DAX_BUS "/drivers/device_dax/bind", dax);
	if (!status)
		say("%s\n", dax);
	return status;
}

static int pmem(int count, char **words)
{
	const char *verb = count ? words[0] : "";

	missing_allocations = 0;
	if (count == 1 && !strcmp(verb, "list"))
		return list_namespaces();
	/* Names are cut where they are used for others. */
	if (count < 2 || strlen(words[1]) >= LINE / 2)
		return -1;
	if (count == 4 && !strcmp(verb, "devdax"))
		return strncmp(words[1], "namespace", 9) ? -1 : make_devdax(words[1], words[2], words[3]);
	if (count == 2 && !strcmp(verb, "raw"))
		return strncmp(words[1], "namespace", 9) ? -1 : make_raw(words[1]);
	if (count == 2 && !strcmp(verb, "kmem"))
		return bind_kmem(words[1], 0, NULL, false);
	if (count == 5 && !strcmp(verb, "kmem"))
		return bind_kmem(words[1], strtoul(words[2], NULL, 10), words[3], atoi(words[4]));
	if ((count == 3 || count == 4) && !strcmp(verb, "state"))
		return set_dax_state(words[1], words[2], count == 4 ? atol(words[3]) : 0);
	if (count == 2 && !strcmp(verb, "unkmem"))
		return unbind_kmem(words[1]);
	return -1;
}
