// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * spare-seed: a library preloaded into the SSH server that hides /proc from it, to speed up logins, and leaves a
 * segmentation fault to the kernel, which tells about it in its log.
 *
 * For each connection, Dropbear reads eight files of /proc (interrupts, vmstat, net/netstat...) as additional entropy
 * (seedrandom, dbrandom.c, 2022.83). In an emulated guest this takes as long as the rest of the login, and it is not
 * needed: getrandom(2) is sufficient on all kernels that memhp supports. The programs that the server starts see /proc,
 * because it starts them with a new environment, without LD_PRELOAD.
 *
 * Its handler of SIGSEGV (commonsetup, svr-main.c) only writes a line and exits: the kernel takes that for no death by a
 * signal.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
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

sighandler_t signal(int number, sighandler_t handler)
{
	const struct sigaction wanted = { .sa_handler = handler, .sa_flags = SA_RESTART };
	struct sigaction last;

	if (number == SIGSEGV)
		return SIG_DFL;
	return sigaction(number, &wanted, &last) == 0 ? last.sa_handler : SIG_ERR;
}
