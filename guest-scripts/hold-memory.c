// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * hold-memory: keeps pages of a physical range in use, until they are released.
 *
 *   hold-memory pinned|movable PAGES LIMIT START END FIFO
 *
 * Allocates memory, up to LIMIT bytes, until PAGES pages lie between START and END (hexadecimal, END exclusive), writes
 * a pattern to these and frees the others.
 *
 *   pinned    a pipe holds references to the pages (vmsplice(2)), so that the kernel cannot migrate them
 *   movable   the pages stay in use, but the kernel may migrate them
 *
 * Prints "held N" and, if pinned, a line with the hexadecimal address of each page. Creates FIFO and continues in the
 * background. To release the pages, read FIFO: it returns "pages N" and "mismatches N", the number of pages and of
 * those whose content has changed; all memory is free at its end of file. Exits with 0, or 2 on error.
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
#define MAX_PINNED 16 /* capacity of a pipe: PIPE_DEF_BUFFERS, linux/pipe_fs_i.h */

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

struct pages {
	char **page;
	uint64_t count, size;
	int pipe; /* read end of the pipe that holds pinned pages, or -1 */
};

static uint64_t count_mismatches(const struct pages *held)
{
	/* Pinned pages are not mapped any more; their content is read from the pipe. */
	static uint64_t copy[65536 / sizeof(uint64_t)];
	uint64_t bad = 0;

	for (uint64_t i = 0; i < held->count; i++) {
		const uint64_t *page = copy;

		if (held->pipe < 0)
			page = (const uint64_t *)held->page[i];
		else if (read(held->pipe, copy, held->size) != (ssize_t)held->size)
			memset(copy, 0, sizeof(copy));
		if (!is_intact(page, held->size / sizeof(*page), i))
			bad++;
	}
	return bad;
}

static int await_reader(const char *path, const struct pages *held)
{
	int fifo = open(path, O_WRONLY);

	if (fifo < 0)
		return fail(path);
	unlink(path);
	/* The reader sees end of file when this process exits, after its memory is freed (do_exit, kernel/exit.c). */
	return dprintf(fifo, "pages %" PRIu64 "\nmismatches %" PRIu64 "\n", held->count, count_mismatches(held)) < 0 ? 2 : 0;
}

/* The physical address of a page, 0 if it is not present. */
static uint64_t address_of(int pagemap, const char *page, uint64_t size)
{
	uint64_t entry;

	if (pread(pagemap, &entry, sizeof(entry), (off_t)((uintptr_t)page / size * sizeof(entry))) != sizeof(entry))
		return 0;
	return entry & PAGEMAP_PRESENT ? (entry & PAGEMAP_PFN) * size : 0;
}

/* Allocates pages until enough lie in the range; frees the others. */
static int allocate(struct pages *held, uint64_t count, uint64_t limit, uint64_t start, uint64_t end)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY);
	char *memory = mmap(NULL, limit, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	char *at;

	held->page = calloc(count, sizeof(*held->page));
	if (pagemap < 0 || !held->page || memory == MAP_FAILED)
		return fail("memory");
	/* No huge pages: a held base page would keep the whole huge page in use. */
	madvise(memory, limit, MADV_NOHUGEPAGE);
	for (at = memory; at + held->size <= memory + limit && held->count < count; at += held->size) {
		uint64_t address;

		write_pattern((uint64_t *)at, held->size / sizeof(uint64_t), held->count);
		address = address_of(pagemap, at, held->size);
		if (address >= start && address < end)
			held->page[held->count++] = at;
	}
	close(pagemap);
	for (uint64_t i = 0; memory < at; memory += held->size) {
		if (i < held->count && held->page[i] == memory)
			i++;
		else if (madvise(memory, held->size, MADV_DONTNEED))
			return fail("madvise");
	}
	if (held->count == count)
		return 0;
	fprintf(stderr, "hold-memory: only %" PRIu64 " pages were allocated in the range\n", held->count);
	return 2;
}

/* Moves the pages into a pipe and prints their addresses. */
static int pin(struct pages *held)
{
	int ends[2], pagemap = open("/proc/self/pagemap", O_RDONLY);

	if (pagemap < 0 || pipe(ends))
		return fail("pipe");
	for (uint64_t i = 0; i < held->count; i++) {
		struct iovec page = {held->page[i], held->size};

		printf("%" PRIx64 "\n", address_of(pagemap, held->page[i], held->size));
		if (vmsplice(ends[1], &page, 1, 0) != (ssize_t)held->size || munmap(held->page[i], held->size))
			return fail("vmsplice");
	}
	close(pagemap);
	held->pipe = ends[0];
	return 0;
}

int main(int argc, char **argv)
{
	struct pages held = {.size = (uint64_t)sysconf(_SC_PAGESIZE), .pipe = -1};
	int pinned = argc == 7 && !strcmp(argv[1], "pinned");
	uint64_t count, limit, start, end;

	if (argc != 7 || (!pinned && strcmp(argv[1], "movable")) || sscanf(argv[2], "%" SCNu64, &count) != 1 ||
	    count < 1 || (pinned && count > MAX_PINNED) || sscanf(argv[3], "%" SCNu64, &limit) != 1 ||
	    sscanf(argv[4], "%" SCNx64, &start) != 1 || sscanf(argv[5], "%" SCNx64, &end) != 1) {
		fputs("usage: hold-memory pinned|movable PAGES LIMIT START END FIFO\n", stderr);
		return 2;
	}
	if (allocate(&held, count, limit, start, end))
		return 2;
	printf("held %" PRIu64 "\n", held.count);
	if (pinned && pin(&held))
		return 2;
	if (mkfifo(argv[6], 0600))
		return fail(argv[6]);
	fflush(stdout);
	signal(SIGHUP, SIG_IGN);
	if (daemon(0, 0))
		return fail("daemon");
	return await_reader(argv[6], &held);
}
