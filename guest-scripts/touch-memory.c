// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * touch-memory: allocates memory, writes a pattern, reads it back, and prints in which physical ranges it was.
 *
 *   touch-memory [-n NODE] BYTES LIMIT [START-END ...]
 *
 * Allocates at least BYTES, and continues until it has a page in each range or has allocated LIMIT bytes, since a
 * program cannot choose physical addresses. With -n it prefers memory of NODE, unless the kernel is built without NUMA.
 * NODE, BYTES and LIMIT are decimal; START and END are hexadecimal physical addresses, END exclusive.
 *
 * Prints "pages N", "mismatches N" (pages whose content differs) and a line "range START-END BYTES" for each range.
 * Exits with 0 if all pages have the pattern, 1 if not, 2 on error.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGEMAP_PRESENT (1ULL << 63)
#define PAGEMAP_PFN ((1ULL << 55) - 1)
#define BATCH 2048
#define HUGE_PAGE_MAX (32 << 20)
#define PREFERRED 1 /* MPOL_PREFERRED, linux/mempolicy.h */
#define MAX_NODES (8 * (int)sizeof(unsigned long))

static int fail(const char *what)
{
	fprintf(stderr, "touch-memory: %s: %s\n", what, strerror(errno));
	return 2;
}

/* Different for each word, so that swapped pages are noticed. */
static uint64_t pattern(uint64_t word)
{
	word = (word + 0x9e3779b97f4a7c15ULL) * 0xbf58476d1ce4e5b9ULL;
	return word ^ (word >> 27);
}

static uint64_t count_mismatches(const volatile uint64_t *memory, uint64_t pages, uint64_t words)
{
	uint64_t bad = 0;

	for (uint64_t page = 0; page < pages; page++) {
		for (uint64_t i = 0; i < words; i++) {
			if (memory[page * words + i] != pattern(page * words + i)) {
				bad++;
				break;
			}
		}
	}
	return bad;
}

/* Adds to used[i] the bytes of n pages that lie in the physical range from ranges[2 * i] to ranges[2 * i + 1]. */
static int locate(int pagemap, uintptr_t start, uint64_t n, uint64_t page_size, const uint64_t *ranges,
		  uint64_t *used, int count)
{
	static uint64_t entries[BATCH];
	ssize_t size = (ssize_t)(n * sizeof(uint64_t));

	if (pread(pagemap, entries, (size_t)size, (off_t)(start / page_size * sizeof(uint64_t))) != size)
		return -1;
	for (uint64_t i = 0; i < n; i++) {
		uint64_t address = (entries[i] & PAGEMAP_PFN) * page_size;

		if (!(entries[i] & PAGEMAP_PRESENT))
			continue;
		for (int r = 0; r < count; r++)
			if (address >= ranges[2 * r] && address < ranges[2 * r + 1])
				used[r] += page_size;
	}
	return 0;
}

static int all_used(const uint64_t *used, int count)
{
	for (int r = 0; r < count; r++)
		if (!used[r])
			return 0;
	return 1;
}

/* Prefers the memory of a node. ENOSYS: the kernel is built without NUMA. */
static int prefer(const char *text)
{
	unsigned long nodes;
	int node;

	if (sscanf(text, "%d", &node) != 1 || node < 0 || node >= MAX_NODES) {
		fprintf(stderr, "touch-memory: invalid node: %s\n", text);
		return 2;
	}
	nodes = 1UL << node;
	/* The kernel decrements maxnode (get_nodes, mm/mempolicy.c). */
	if (syscall(SYS_set_mempolicy, PREFERRED, &nodes, MAX_NODES + 1) && errno != ENOSYS)
		return fail("set_mempolicy");
	return 0;
}

int main(int argc, char **argv)
{
	uint64_t page_size = (uint64_t)sysconf(_SC_PAGESIZE);
	uint64_t words = page_size / sizeof(uint64_t);
	int count, pagemap = open("/proc/self/pagemap", O_RDONLY);
	uint64_t *ranges, *used, *memory, bytes, limit, bad;
	uint64_t page = 0;

	if (argc > 2 && !strcmp(argv[1], "-n")) {
		if (prefer(argv[2]))
			return 2;
		argc -= 2;
		argv += 2;
	}
	count = argc > 3 ? argc - 3 : 0;
	if (argc < 3 || sscanf(argv[1], "%" SCNu64, &bytes) != 1 || sscanf(argv[2], "%" SCNu64, &limit) != 1 ||
	    bytes < page_size || limit < bytes) {
		fputs("usage: touch-memory [-n NODE] BYTES LIMIT [START-END ...]\n", stderr);
		return 2;
	}
	if (pagemap < 0)
		return fail("/proc/self/pagemap");
	ranges = calloc(2 * (size_t)count + 1, sizeof(*ranges));
	used = calloc((size_t)count + 1, sizeof(*used));
	if (!ranges || !used)
		return fail("calloc");
	for (int r = 0; r < count; r++) {
		if (sscanf(argv[r + 3], "%" SCNx64 "-%" SCNx64, &ranges[2 * r], &ranges[2 * r + 1]) != 2) {
			fprintf(stderr, "touch-memory: invalid range, not START-END: %s\n", argv[r + 3]);
			return 2;
		}
	}
	memory = mmap(NULL, limit, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		return fail("mmap");
	/*
	 * Fewer page faults. Not fatal: EINVAL from a kernel without huge pages. With pages of 64K a huge page is 512M, a
	 * whole memory block: the last free one of a zone is below its watermark, so that other zones are used up first.
	 */
	madvise(memory, limit, page_size * page_size / 8 <= HUGE_PAGE_MAX ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	while (page < limit / page_size && (page * page_size < bytes || !all_used(used, count))) {
		uint64_t n = limit / page_size - page < BATCH ? limit / page_size - page : BATCH;

		for (uint64_t i = page * words; i < (page + n) * words; i++)
			memory[i] = pattern(i);
		if (locate(pagemap, (uintptr_t)memory + page * page_size, n, page_size, ranges, used, count))
			return fail("/proc/self/pagemap");
		page += n;
	}
	bad = count_mismatches(memory, page, words);
	printf("pages %" PRIu64 "\nmismatches %" PRIu64 "\n", page, bad);
	for (int r = 0; r < count; r++)
		printf("range %" PRIx64 "-%" PRIx64 " %" PRIu64 "\n", ranges[2 * r], ranges[2 * r + 1], used[r]);
	return bad ? 1 : 0;
}
