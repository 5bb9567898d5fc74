#if defined(__linux__)
#define _GNU_SOURCE
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "base/memory.h"

#include <stdlib.h>
#include <string.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

static _Atomic size_t live_bytes, peak_bytes;
static _Atomic long fail_countdown;

/* Stored in the 64 bytes before the data of every block. */
typedef struct {
    void *base;
    size_t bytes;
    size_t mapped; /* bytes of the mapping that begins at base; 0: base comes from malloc */
    int reserved;  /* does not count as live */
} block_header;

_Static_assert(sizeof(block_header) <= MOM_ALIGNMENT, "the header must fit before the data");

int mom_count_down(atomic_long *count) { return atomic_load(count) > 0 && atomic_fetch_sub(count, 1) == 1; }

/* Large blocks begin at a huge page, and the system is asked to use huge pages for them. Matrix products walk through
 * memory in strides of whole rows. With pages of 4 KB, much of their time would go into address translation. */
#define HUGE_PAGE ((size_t)1 << 21)
#define HUGE_BLOCK ((size_t)1 << 22)

static block_header *header_of(void *block) {
    return (block_header *)(void *)((unsigned char *)block - MOM_ALIGNMENT);
}

#if defined(__linux__)
/* The unit in which memory is mapped: 4 KB on most machines, up to 64 KB on some. */
static size_t page_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }

/* A mapping filled with zeros. Its data begin at a huge page. NULL if the system refuses. */
static void *map_block(size_t bytes, int reserved) {
    const size_t room = bytes + 2 * HUGE_PAGE, page = page_size(); /* a page in front of the data holds the header */
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (reserved ? MAP_NORESERVE : 0);
    unsigned char *base = mmap(NULL, room, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (base == MAP_FAILED)
        return NULL;
    const size_t before = HUGE_PAGE - ((uintptr_t)base & (HUGE_PAGE - 1)); /* a huge page at most, a page at least */
    const size_t end = (before + bytes + page - 1) / page * page;
    if (before > page)
        (void)munmap(base, before - page);
    if (end < room)
        (void)munmap(base + end, room - end);
    unsigned char *data = base + before;
    *header_of(data) = (block_header){data - page, bytes, page + end - before, reserved};
#if defined(MADV_HUGEPAGE)
    if (!reserved)
        (void)madvise(data, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE); /* only advice: a refusal does no harm */
#endif
    return data;
}

static void unmap_block(block_header *header) { (void)munmap(header->base, header->mapped); }
#else
static void *map_block(size_t bytes, int reserved) {
    (void)bytes;
    (void)reserved;
    return NULL;
}

static void unmap_block(block_header *header) { (void)header; }
#endif

static void *heap_block(size_t bytes, int reserved) {
    unsigned char *base = malloc(bytes + 2 * MOM_ALIGNMENT);
    if (!base)
        return NULL;
    const uintptr_t address = ((uintptr_t)base + 2 * MOM_ALIGNMENT - 1) & ~(uintptr_t)(MOM_ALIGNMENT - 1);
    unsigned char *data = base + (address - (uintptr_t)base);
    *header_of(data) = (block_header){base, bytes, 0, reserved};
    return data;
}

static void count_live(size_t bytes) {
    const size_t live = atomic_fetch_add(&live_bytes, bytes) + bytes;
    size_t peak = atomic_load(&peak_bytes);
    while (live > peak && !atomic_compare_exchange_weak(&peak_bytes, &peak, live)) {
    }
}

static void *allocate(size_t count, size_t size, int reserved, const char *what, mom_error *err) {
    if (size && count > (SIZE_MAX / 2 - 2 * HUGE_PAGE) / size) {
        mom_error_set(err, MOM_ERR_MEMORY, "%s: %zu items of %zu bytes are more than can be addressed", what, count, size);
        return NULL;
    }
    const size_t bytes = count * size;
    void *data = NULL;
    if (!mom_count_down(&fail_countdown)) {
        if (bytes >= HUGE_BLOCK)
            data = map_block(bytes, reserved);
        if (!data)
            data = heap_block(bytes, reserved);
    }
    if (!data)
        mom_error_set(err, MOM_ERR_MEMORY, "%s: cannot allocate %zu bytes", what, bytes);
    else if (!reserved)
        count_live(bytes);
    return data;
}

void *mom_memory_alloc(size_t count, size_t size, const char *what, mom_error *err) {
    return allocate(count, size, 0, what, err);
}

void *mom_memory_calloc(size_t count, size_t size, const char *what, mom_error *err) {
    void *data = allocate(count, size, 0, what, err);
    if (data && !header_of(data)->mapped)
        memset(data, 0, count * size);
    return data;
}

void *mom_memory_reserve(size_t count, size_t size, const char *what, mom_error *err) {
    return allocate(count, size, 1, what, err);
}

void mom_memory_free(void *block) {
    if (!block)
        return;
    block_header *header = header_of(block);
    if (!header->reserved)
        atomic_fetch_sub(&live_bytes, header->bytes);
    if (header->mapped)
        unmap_block(header);
    else
        free(header->base);
}

void mom_memory_trim(void) {
#if defined(__GLIBC__)
    (void)malloc_trim(0);
#endif
}

void mom_memory_fail_at(long n) { atomic_store(&fail_countdown, n); }
size_t mom_memory_live_bytes(void) { return atomic_load(&live_bytes); }
size_t mom_memory_peak_bytes(void) { return atomic_load(&peak_bytes); }
void mom_memory_reset_peak(void) { atomic_store(&peak_bytes, atomic_load(&live_bytes)); }
