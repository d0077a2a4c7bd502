// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * hold-memory: keep pages of a physical range where they are, until somebody asks for them.
 *
 *   hold-memory PAGES LIMIT START END FIFO
 *
 * Takes memory, up to LIMIT bytes, until PAGES pages lie between START and END (hexadecimal, END exclusive), writes a
 * pattern to those, puts them into a pipe with vmsplice(2), whose reference keeps them from being migrated, and gives
 * the others back. Then makes FIFO, prints "held N" and the address of each page in hexadecimal, and goes on in the
 * background. Whoever opens FIFO to read gets "mismatches N", the pages that have changed meanwhile; at the end of the
 * file all memory is given back. Exits with 0, or 2 if it could not be done.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGEMAP_PRESENT (1ULL << 63)
#define PAGEMAP_PFN ((1ULL << 55) - 1)
#define MOST 16 /* what a pipe holds, PIPE_DEF_BUFFERS */

static int fail(const char *what)
{
	fprintf(stderr, "hold-memory: %s: %s\n", what, strerror(errno));
	return 2;
}

static void write_pattern(uint64_t *page, uint64_t words, uint64_t seed)
{
	for (uint64_t i = 0; i < words; i++)
		page[i] = (seed + i) * 0x9e3779b97f4a7c15ULL;
}

static int is_intact(const uint64_t *page, uint64_t words, uint64_t seed)
{
	for (uint64_t i = 0; i < words; i++)
		if (page[i] != (seed + i) * 0x9e3779b97f4a7c15ULL)
			return 0;
	return 1;
}

/* Reads the pages back out of the pipe, and says how many differ. */
static int await_reader(const char *path, int from, uint64_t *page, uint64_t size, unsigned int count)
{
	int fifo = open(path, O_WRONLY);
	unsigned int bad = 0;

	if (fifo < 0)
		return fail(path);
	unlink(path);
	for (unsigned int i = 0; i < count; i++) {
		memset(page, 0, size);
		if (read(from, page, size) != (ssize_t)size || !is_intact(page, size / sizeof(*page), i))
			bad++;
	}
	/* The file ends when this process does, after its memory is given back (do_exit, kernel/exit.c). */
	return dprintf(fifo, "mismatches %u\n", bad) < 0 ? 2 : 0;
}

int main(int argc, char **argv)
{
	uint64_t limit, start, end, entry, address[MOST], size = (uint64_t)sysconf(_SC_PAGESIZE);
	int ends[2], pagemap = open("/proc/self/pagemap", O_RDONLY);
	unsigned int wanted, count = 0;
	char *memory;

	if (argc != 6 || sscanf(argv[1], "%u", &wanted) != 1 || wanted < 1 || wanted > MOST ||
	    sscanf(argv[2], "%" SCNu64, &limit) != 1 || sscanf(argv[3], "%" SCNx64, &start) != 1 ||
	    sscanf(argv[4], "%" SCNx64, &end) != 1) {
		fputs("usage: hold-memory PAGES LIMIT START END FIFO\n", stderr);
		return 2;
	}
	if (pagemap < 0)
		return fail("/proc/self/pagemap");
	if (pipe(ends))
		return fail("pipe");
	memory = mmap(NULL, limit, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		return fail("mmap");
	/* One of the small pages of a huge one would keep all of it. */
	madvise(memory, limit, MADV_NOHUGEPAGE);
	for (char *at = memory; at < memory + limit && count < wanted; at += size) {
		struct iovec page = {at, size};

		write_pattern((uint64_t *)at, size / sizeof(uint64_t), count);
		if (pread(pagemap, &entry, sizeof(entry), (off_t)((uintptr_t)at / size * sizeof(entry))) != sizeof(entry))
			return fail("/proc/self/pagemap");
		address[count] = (entry & PAGEMAP_PFN) * size;
		if (!(entry & PAGEMAP_PRESENT) || address[count] < start || address[count] >= end)
			continue;
		if (vmsplice(ends[1], &page, 1, 0) != (ssize_t)size)
			return fail("vmsplice");
		count++;
	}
	if (munmap(memory, limit))
		return fail("munmap");
	if (count < wanted) {
		fprintf(stderr, "hold-memory: %u pages of %u were handed out there\n", count, wanted);
		return 2;
	}
	if (mkfifo(argv[5], 0600))
		return fail(argv[5]);
	printf("held %u\n", count);
	for (unsigned int i = 0; i < count; i++)
		printf("%" PRIx64 "\n", address[i]);
	fflush(stdout);
	/* The page that is read into must not be in the range that is held. */
	static uint64_t page[65536 / sizeof(uint64_t)];
	signal(SIGHUP, SIG_IGN);
	if (daemon(0, 0))
		return fail("daemon");
	return await_reader(argv[5], ends[0], page, size, count);
}
