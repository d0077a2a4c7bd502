// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * load-worker: a worker for load-keeper, whose header describes the protocol. A round does one kind of work, and frees
 * all that it allocated.
 *
 *   load-worker KIND [NAME=NUMBER...]
 *
 *   KIND           parameters     a round
 *   ptdump                        reads the dump of the kernel's page tables in debugfs (mm/ptdump.c)
 *   kcore          step           reads the first page of each step bytes, and the last page, of each range of the
 *                                 linear map in /proc/kcore
 *   kpageflags                    reads /proc/kpageflags and /proc/kpagecount (fs/proc/page.c)
 *   anon           size           maps size bytes, writes to every page, reads it back and unmaps them
 *   memfd-secret   size           likewise with secret memory, which the kernel removes from the linear map meanwhile
 *                                 (mm/secretmem.c)
 *   vmalloc        size, areas    has the kernel allocate and free that many areas of size bytes with vmalloc
 *   bpf                           attaches JIT-compiled socket filters of maximum length, and detaches them
 *
 * Every kind also takes node=N: prefer the memory of node N.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/if_packet.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define BUFFER (256 << 10)
#define MAX_RANGES 1024
#define PREFERRED 1 /* MPOL_PREFERRED, linux/mempolicy.h */
#define MAX_NODES (8 * (int)sizeof(unsigned long))
#define MEMFD_SECRET 447 /* the same on both architectures; older C libraries do not know it */
#define MAX_FILTERS 256
#define FREE_TIMEOUT_MS 5000

struct kind {
	const char *name;
	bool (*prepare)(void); /* or NULL; false if the load cannot run, and problem says why */
	bool (*round)(void);
	uint64_t size; /* default of the parameter size or step */
};

static char problem[120];
static char buffer[BUFFER] __attribute__((aligned(65536)));
static uint64_t size, areas = 1, page_size;

static bool __attribute__((format(printf, 1, 2))) fail(const char *format, ...)
{
	va_list values;

	va_start(values, format);
	vsnprintf(problem, sizeof(problem), format, values);
	va_end(values);
	return false;
}

static bool fail_errno(const char *what)
{
	return fail("%s: %s", what, strerror(errno));
}

/* Reads a file to its end; fails if it is empty. */
static bool read_all(const char *path)
{
	int fd = open(path, O_RDONLY);
	ssize_t got;
	uint64_t all = 0;

	if (fd < 0)
		return fail_errno(path);
	while ((got = read(fd, buffer, BUFFER)) > 0)
		all += (uint64_t)got;
	close(fd);
	if (got < 0)
		return fail_errno(path);
	return all || fail("%s is empty", path);
}

/* ---- ptdump ------------------------------------------------------------------------------------------------------ */

static const char ptdump[] = "/sys/kernel/debug/kernel_page_tables";

static bool ptdump_prepare(void)
{
	return !access(ptdump, R_OK) || fail_errno(ptdump);
}

static bool ptdump_round(void)
{
	return read_all(ptdump);
}

/* ---- kcore ------------------------------------------------------------------------------------------------------- */

static int kcore = -1;

static bool kcore_prepare(void)
{
	kcore = open("/proc/kcore", O_RDONLY);
	return kcore >= 0 || fail_errno("/proc/kcore");
}

static bool kcore_read(uint64_t offset)
{
	/* Memory that was removed after the headers were read reads as zeros. */
	return pread(kcore, buffer, page_size, (off_t)offset) == (ssize_t)page_size || fail_errno("reading /proc/kcore");
}

static bool kcore_round(void)
{
	static Elf64_Phdr ranges[MAX_RANGES];
	Elf64_Ehdr header;
	size_t length;

	if (pread(kcore, &header, sizeof(header), 0) != sizeof(header))
		return fail_errno("reading the header of /proc/kcore");
	length = header.e_phnum * sizeof(*ranges);
	if (header.e_phnum > MAX_RANGES || header.e_phentsize != sizeof(*ranges))
		return fail("unexpected header of /proc/kcore: %u ranges", header.e_phnum);
	if (pread(kcore, ranges, length, (off_t)header.e_phoff) != (ssize_t)length)
		return fail_errno("reading the ranges of /proc/kcore");
	for (unsigned int i = 0; i < header.e_phnum; i++) {
		/* Ranges outside of the linear map have no physical address (read_kcore_iter, fs/proc/kcore.c). */
		if (ranges[i].p_type != PT_LOAD || ranges[i].p_paddr == UINT64_MAX || ranges[i].p_filesz < page_size)
			continue;
		for (uint64_t at = 0; at <= ranges[i].p_filesz - page_size; at += size)
			if (!kcore_read(ranges[i].p_offset + at))
				return false;
		if (!kcore_read(ranges[i].p_offset + ranges[i].p_filesz - page_size))
			return false;
	}
	return true;
}

/* ---- kpageflags -------------------------------------------------------------------------------------------------- */

static bool kpageflags_prepare(void)
{
	return !access("/proc/kpageflags", R_OK) || fail_errno("/proc/kpageflags");
}

static bool kpageflags_round(void)
{
	return read_all("/proc/kpageflags") && read_all("/proc/kpagecount");
}

/* ---- anon and memfd-secret --------------------------------------------------------------------------------------- */

static bool write_and_check(int fd, int flags)
{
	char *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);
	bool populated = true;

	if (memory == MAP_FAILED)
		return fail_errno("mmap");
	/* Populate in advance: if memory runs out, this fails, while a page fault would invoke the OOM killer. */
	if (flags & MAP_ANONYMOUS)
		populated = !madvise(memory, size, MADV_POPULATE_WRITE) || fail_errno("MADV_POPULATE_WRITE");
	for (uint64_t at = 0; populated && at < size; at += page_size)
		*(volatile uint64_t *)(memory + at) = at;
	for (uint64_t at = 0; populated && at < size; at += page_size)
		if (*(volatile uint64_t *)(memory + at) != at)
			populated = fail("the content of memory changed");
	munmap(memory, size);
	return populated;
}

static bool anon_round(void)
{
	return write_and_check(-1, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE);
}

static bool secret_round(void)
{
	int fd = (int)syscall(MEMFD_SECRET, 0);
	bool used;

	if (fd < 0)
		return fail_errno("memfd_secret");
	used = (!ftruncate(fd, (off_t)size) || fail_errno("ftruncate")) && write_and_check(fd, MAP_SHARED);
	close(fd);
	return used;
}

/* ---- vmalloc ----------------------------------------------------------------------------------------------------- */

/*
 * The ring of a packet socket: the kernel allocates blocks that are too large for the page allocator with vmalloc, and
 * frees them before the system call that removes the ring returns (alloc_one_pg_vec_page, packet_set_ring,
 * net/packet/af_packet.c).
 */
static int packet = -1;

static bool set_ring(uint64_t blocks)
{
	struct tpacket_req ring = { 0 };

	if (blocks) {
		ring.tp_block_size = (unsigned int)size;
		ring.tp_frame_size = (unsigned int)size;
		ring.tp_block_nr = (unsigned int)blocks;
		ring.tp_frame_nr = (unsigned int)blocks;
	}
	return !setsockopt(packet, SOL_PACKET, PACKET_RX_RING, &ring, sizeof(ring)) || fail_errno("PACKET_RX_RING");
}

static bool vmalloc_round(void)
{
	return set_ring(areas) && set_ring(0);
}

/*
 * Whether vmalloc has an area of the ring. The total does not show that, since other loads run meanwhile. The area has
 * a power-of-two number of pages (packet_set_ring) and a guard page (s_show, mm/vmalloc.c). The name of the function
 * that allocated it depends on the compiler's inlining.
 */
static bool ring_is_in_vmalloc(void)
{
	FILE *file = fopen("/proc/vmallocinfo", "r");
	uint64_t area, block = page_size;
	bool found = false;
	char line[512];

	while (block < size)
		block <<= 1;
	while (file && !found && fgets(line, sizeof(line), file))
		found = sscanf(line, "%*s %lu", &area) == 1 && area == block + page_size &&
			(strstr(line, " packet_") || strstr(line, "pg_vec"));
	if (file)
		fclose(file);
	return found;
}

static bool vmalloc_prepare(void)
{
	bool found;

	if (size > INT32_MAX || areas > 1024)
		return fail("size is limited to 2 GiB, areas to 1024");
	packet = socket(AF_PACKET, SOCK_RAW, 0);
	if (packet < 0)
		return fail_errno("packet socket");
	if (!set_ring(areas))
		return false;
	found = ring_is_in_vmalloc();
	if (!set_ring(0))
		return false;
	return found || fail("the kernel allocates %lu bytes without vmalloc: use a larger size", size);
}

/* ---- bpf --------------------------------------------------------------------------------------------------------- */

/*
 * Classic socket filters are BPF programs, too. The kernel puts compiled programs into packs of 2 MiB per node, and
 * frees a pack with its last program (bpf_prog_pack_alloc, bpf_prog_pack_free, kernel/bpf/core.c).
 */
#define PACK (2 << 20)

static int sockets[MAX_FILTERS], filters;
/* The lowest VmallocUsed seen between two rounds */
static uint64_t baseline = UINT64_MAX;

static uint64_t vmalloc_used(void)
{
	FILE *file = fopen("/proc/meminfo", "r");
	uint64_t used = 0;
	char line[120];

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "VmallocUsed: %lu", &used) == 1)
			break;
	if (file)
		fclose(file);
	return used << 10;
}

/* Bytes of the vmalloc areas that hold packs */
static uint64_t text_used(void)
{
	FILE *file = fopen("/proc/vmallocinfo", "r");
	uint64_t used = 0, area;
	char line[256];

	while (file && fgets(line, sizeof(line), file))
		/* The name of the function that allocated the area depends on the compiler's inlining. */
		if ((strstr(line, "execmem_") || strstr(line, "bpf_")) &&
		    sscanf(line, "%*s %lu", &area) == 1 && area >= PACK)
			used += area;
	if (file)
		fclose(file);
	return used;
}

static bool attach(int fd)
{
	static struct sock_filter code[BPF_MAXINSNS];
	struct sock_fprog filter = { .len = BPF_MAXINSNS, .filter = code };

	/* Loads of constants that take two instructions on both architectures */
	for (unsigned int i = 0; i < BPF_MAXINSNS; i++)
		code[i] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_IMM, 0x12345678 + i);
	code[BPF_MAXINSNS - 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, 0);
	return !setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter)) || fail_errno("SO_ATTACH_FILTER");
}

static bool detach(int count)
{
	bool detached = true;
	int none = 0;

	while (count--)
		if (setsockopt(sockets[count], SOL_SOCKET, SO_DETACH_FILTER, &none, sizeof(none)) && errno != ENOENT)
			detached = fail_errno("SO_DETACH_FILTER");
	/*
	 * A kernel worker frees the programs after a grace period (bpf_prog_free). It restores the linear map first,
	 * and subtracts the pages from this count last (vfree, mm/vmalloc.c).
	 */
	for (int ms = 0; vmalloc_used() > baseline + PACK / 2; ms++) {
		if (ms == FREE_TIMEOUT_MS)
			return fail("the kernel does not free the programs");
		usleep(1000);
	}
	return detached;
}

static bool bpf_round(void)
{
	uint64_t used = vmalloc_used(), text = text_used();
	bool done = true;
	int count;

	if (used < baseline)
		baseline = used;
	for (count = 0; done && count < filters; count++)
		done = attach(sockets[count]);
	if (done && text_used() <= text)
		done = fail("the kernel allocated no pack for the programs");
	return detach(count) && done;
}

/* Adds filters until the kernel allocates a pack for them: an existing pack may have room left. */
static bool bpf_prepare(void)
{
	uint64_t text = text_used();
	int fd = open("/proc/sys/net/core/bpf_jit_enable", O_WRONLY);

	/* Off by default unless the architecture selects ARCH_WANT_DEFAULT_BPF_JIT. */
	if (fd < 0 || write(fd, "1\n", 2) != 2)
		return fail_errno("/proc/sys/net/core/bpf_jit_enable");
	close(fd);
	baseline = vmalloc_used();
	while (text_used() <= text) {
		if (filters == MAX_FILTERS)
			return fail("the kernel allocates no pack for %d socket filters", filters);
		sockets[filters] = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
		if (sockets[filters] < 0)
			return fail_errno("socket");
		if (!attach(sockets[filters++]))
			return false;
	}
	return detach(filters);
}

static const struct kind kinds[] = {
	{ "ptdump", ptdump_prepare, ptdump_round, 0 },
	{ "kcore", kcore_prepare, kcore_round, 1 << 20 },
	{ "kpageflags", kpageflags_prepare, kpageflags_round, 0 },
	{ "anon", NULL, anon_round, 64 << 20 },
	{ "memfd-secret", secret_round, secret_round, 2 << 20 },
	{ "vmalloc", vmalloc_prepare, vmalloc_round, 16 << 20 },
	{ "bpf", bpf_prepare, bpf_round, 0 },
};

/* One read() gets exactly one line, since the keeper writes the next only after the answer. */
static int serve(const struct kind *kind)
{
	char line[16];

	puts("ready");
	fflush(stdout);
	while (read(0, line, sizeof(line)) > 0) {
		if (kind->round())
			puts("ok");
		else
			printf("failed %s\n", problem);
		fflush(stdout);
	}
	return 0;
}

/* Prefers the memory of a node. ENOSYS: the kernel is built without NUMA. */
static bool prefer(uint64_t node)
{
	unsigned long nodes;

	if (node >= (uint64_t)MAX_NODES)
		return fail("invalid node: %lu", node);
	nodes = 1UL << node;
	/* The kernel decrements maxnode (get_nodes, mm/mempolicy.c). */
	return !syscall(SYS_set_mempolicy, PREFERRED, &nodes, MAX_NODES + 1) || errno == ENOSYS ||
	       fail_errno("set_mempolicy");
}

static bool set(const char *argument)
{
	uint64_t value;

	if (sscanf(argument, "size=%lu", &value) == 1 || sscanf(argument, "step=%lu", &value) == 1)
		size = (value + page_size - 1) / page_size * page_size;
	else if (sscanf(argument, "areas=%lu", &value) == 1)
		areas = value;
	else if (sscanf(argument, "node=%lu", &value) == 1)
		return prefer(value);
	else
		return fail("unknown parameter: %s", argument);
	return value || fail("%s: must not be 0", argument);
}

int main(int argc, char **argv)
{
	const struct kind *kind = NULL;
	bool valid = argc > 1;

	page_size = (uint64_t)sysconf(_SC_PAGESIZE);
	for (size_t i = 0; valid && i < sizeof(kinds) / sizeof(*kinds); i++)
		if (!strcmp(kinds[i].name, argv[1]))
			kind = &kinds[i];
	if (!kind) {
		puts("unknown kind of load");
		return 2;
	}
	size = kind->size;
	for (int i = 2; i < argc; i++)
		valid = valid && set(argv[i]);
	if (valid && (!kind->prepare || kind->prepare()))
		return serve(kind);
	puts(problem);
	return 1;
}
