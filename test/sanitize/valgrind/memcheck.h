/*
 * What PostgreSQL tells Valgrind of its memory, told to AddressSanitizer.
 *
 * A server that is compiled with USE_VALGRIND announces which parts of a memory
 * context's blocks are allocated, and which shared buffers are pinned, by the
 * macros of Valgrind's header of this name.  Without that AddressSanitizer sees
 * a block as one piece: an access past the end of what was palloc'ed, or to
 * what was pfree'd, goes unnoticed.  scripts/build-server puts this header in
 * the place of Valgrind's.
 *
 * AddressSanitizer does not know whether memory is initialised: what Valgrind
 * calls defined and undefined is all accessible.
 */
#ifndef GIGS_VALGRIND_MEMCHECK_H
#define GIGS_VALGRIND_MEMCHECK_H

#include <sanitizer/asan_interface.h>

#define RUNNING_ON_VALGRIND 0
#define VALGRIND_COUNT_ERRORS 0
#define VALGRIND_PRINTF(...) ((void) 0)
#define VALGRIND_DISABLE_ERROR_REPORTING ((void) 0)
#define VALGRIND_ENABLE_ERROR_REPORTING ((void) 0)

#define VALGRIND_MAKE_MEM_NOACCESS(addr, size) \
	__asan_poison_memory_region(addr, size)
#define VALGRIND_MAKE_MEM_UNDEFINED(addr, size) \
	__asan_unpoison_memory_region(addr, size)
#define VALGRIND_MAKE_MEM_DEFINED(addr, size) \
	__asan_unpoison_memory_region(addr, size)
#define VALGRIND_CHECK_MEM_IS_DEFINED(addr, size) ((void) 0)

/* A context's memory is poisoned as it is wiped, which assertions bring. */
#define VALGRIND_CREATE_MEMPOOL(pool, redzones, zeroed) ((void) 0)
#define VALGRIND_DESTROY_MEMPOOL(pool) ((void) 0)
#define VALGRIND_MEMPOOL_ALLOC(pool, addr, size) \
	__asan_unpoison_memory_region(addr, size)
#define VALGRIND_MEMPOOL_FREE(pool, addr) ((void) 0)
#define VALGRIND_MEMPOOL_CHANGE(pool, before, after, size) \
	__asan_unpoison_memory_region(after, size)
#define VALGRIND_MEMPOOL_TRIM(pool, addr, size) ((void) 0)

#endif /* GIGS_VALGRIND_MEMCHECK_H */
