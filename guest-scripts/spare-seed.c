// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * spare-seed: preloaded into the SSH server, spares it what it reads of /proc for each connection.
 *
 * Dropbear stirs eight files of /proc (interrupts, vmstat, net/netstat...) into its random numbers whenever somebody
 * connects (seedrandom, dbrandom.c, 2022.83), after what getrandom(2) gave it, which needs no help on any kernel that
 * can be tested here. In an emulated guest they take as long as the rest of the login. They are not there for the
 * server; what it starts sees them, as it starts that with an environment of its own.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

int open64(const char *path, int flags, ...)
{
	static const char hidden[] = "/proc/";
	mode_t mode = 0;
	int at = 0;

	while (hidden[at] != '\0' && path[at] == hidden[at])
		at++;
	if (hidden[at] == '\0') {
		errno = ENOENT;
		return -1;
	}
	if (flags & O_CREAT) {
		va_list values;

		va_start(values, flags);
		mode = va_arg(values, mode_t);
		va_end(values);
	}
	return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int open(const char *path, int flags, ...) __attribute__((alias("open64")));
