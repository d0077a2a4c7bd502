// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * Part of agent.c: waits until something about devices is true, on the kernel's uevents; and waits for drivers, like
 * the script wait-driver.
 *
 * The kernel sends a uevent after a device was added, went online or offline, and was bound to a driver or unbound
 * (device_add, device_online, device_offline in drivers/base/core.c; driver_bound, __device_release_driver in
 * drivers/base/dd.c; v6.1 to v7.3). It sends none
 *
 *   - after a device is gone: "remove" comes before its folder is deleted (device_del, drivers/base/core.c);
 *   - when a block is back online because its memory could not go offline (memory_block_change_state,
 *     drivers/base/memory.c);
 *   - for the end of work of a workqueue (agent-work.h).
 *
 * So it looks again 1 ms after a uevent, then after twice that time, and so on, and every 100 ms without one.
 */
#define FIRST_MS 1
#define LAST_MS 100

/* A socket that receives the kernel's uevents, -1 without CONFIG_NET. */
static int subscribe(void)
{
	struct sockaddr_nl address = { .nl_family = AF_NETLINK, .nl_groups = 1 };
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);

	if (fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof(address))) {
		close(fd);
		return -1;
	}
	return fd;
}

/* Takes the uevents that have arrived; if some were lost (ENOBUFS), that is one, too. Their text is of no interest. */
static bool take_uevents(int fd)
{
	char unused;
	bool any = false;

	while (recv(fd, &unused, sizeof(unused), MSG_TRUNC) >= 0 || errno == ENOBUFS)
		any = true;
	return any;
}

/* Waits until is_met(what); returns false if it is not by the end. The socket must not stay open: what the kernel keeps
 * for it might lie in memory that is to be removed. */
static bool await(bool (*is_met)(void *), void *what, long long end)
{
	int fd, pause = LAST_MS;
	bool met;

	if (is_met(what))
		return true;
	fd = subscribe();
	while (!(met = is_met(what)) && left(end)) {
		struct pollfd polled = { .fd = fd, .events = POLLIN };

		if (fd < 0)
			pause = FIRST_MS;
		poll(&polled, 1, pause < left(end) ? pause : left(end));
		if (fd >= 0 && take_uevents(fd))
			pause = FIRST_MS;
		else
			pause = 2 * pause < LAST_MS ? 2 * pause : LAST_MS;
	}
	if (fd >= 0)
		close(fd);
	return met;
}

/* ---- drivers ----------------------------------------------------------------------------------------------------- */

extern char **environ;

/* Loads a driver's module if the driver is not there; the guest has no udev. Returns whether it is there then. */
static bool load_driver(const char *bus, const char *driver)
{
	const char *argv[] = { "modprobe", driver, NULL };
	posix_spawn_file_actions_t actions;
	pid_t pid;

	if (exists(path_of(BUS "/%s/drivers/%s", bus, driver)))
		return true;
	posix_spawn_file_actions_init(&actions);
	for (int fd = 0; fd < 3; fd++)
		posix_spawn_file_actions_addopen(&actions, fd, "/dev/null", O_RDWR, 0);
	if (!posix_spawnp(&pid, "modprobe", &actions, NULL, (char **)argv, environ))
		waitpid(pid, NULL, 0);
	posix_spawn_file_actions_destroy(&actions);
	return exists(path_of(BUS "/%s/drivers/%s", bus, driver));
}

struct binding {
	const char *bus, *name, *driver;
};

static bool is_bound(const struct binding *b)
{
	return exists(path_of(BUS "/%s/devices/%s/driver", b->bus, b->name)) &&
	       exists(path_of(BUS "/%s/drivers/%s/%s", b->bus, b->driver, b->name));
}

/*
 * The kernel creates the links before it calls the driver's probe() (driver_sysfs_add, drivers/base/dd.c). A virtio
 * driver sets DRIVER_OK when it is ready (virtio_device_ready, include/linux/virtio_config.h); virtio_mem_probe has
 * added its resource by then. Reading a namespace's holder blocks until probe() has returned (holder_show takes the
 * device's lock, drivers/nvdimm/namespace_devs.c).
 */
static bool is_probed(void *what)
{
	const struct binding *b = what;
	const char *status;

	if (!is_bound(b))
		return false;
	if (!strcmp(b->bus, "virtio")) {
		status = first_line(path_of(BUS "/virtio/devices/%s/status", b->name));
		if (!status || !(strtoul(status, NULL, 16) & 4))
			return false;
	} else if (exists(path_of(BUS "/%s/devices/%s/holder", b->bus, b->name))) {
		first_line(path_of(BUS "/%s/devices/%s/holder", b->bus, b->name));
	}
	return is_bound(b);
}

static int wait_driver(int count, char **words)
{
	struct binding b;
	const char *driver;

	if (count != 4)
		return -1;
	b = (struct binding){ words[0], words[1], words[2] };
	load_driver(b.bus, b.driver);
	if (await(is_probed, &b, now() + atoll(words[3]) * 1000))
		return 0;
	if (!exists(path_of(BUS "/%s/devices/%s", b.bus, b.name))) {
		say("no %s\n", b.name);
		return 1;
	}
	driver = link_name(path_of(BUS "/%s/devices/%s/driver", b.bus, b.name));
	say("%s with %s\n", b.name, *driver ? driver : "no driver");
	return 1;
}
