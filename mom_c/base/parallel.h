/* Threads: loops over tasks.
 *
 * Results do not depend on the number of threads or on which thread runs a task: no two tasks write the same output,
 * and every reduction inside a task has a fixed order.
 * Without OpenMP the loop is serial.
 */
#ifndef MOM_BASE_PARALLEL_H
#define MOM_BASE_PARALLEL_H

#include <stdatomic.h>
#include <stddef.h>

#define MOM_MAX_THREADS 256

/* task < tasks; thread < threads tells which per-thread scratch may be used. */
typedef void (*mom_task)(void *context, size_t task, int thread);

/* Runs all tasks on at most `threads` threads, on fewer if the system refuses to create so many. Each thread has a range of
 * tasks of its own and then helps the others. So a thread meets the same rows in every loop, and their memory is near it on
 * machines with several memories (NUMA). Operators use mom_parallel_for (base/exec.h). */
void mom_parallel_run(int threads, size_t tasks, mom_task run, void *context);
/* The same for tasks that are started in order: a task may wait for earlier tasks, but never for later ones. */
void mom_parallel_run_in_order(int threads, size_t tasks, mom_task run, void *context);
/* Waits until other tasks have counted down to 0 (with memory_order_release). */
void mom_wait_until_zero(const atomic_size_t *count);

/* Splits [0, n) into `parts` ranges of nearly equal size; part p is [begin, end). */
void mom_range(size_t n, size_t parts, size_t p, size_t *begin, size_t *end);

int mom_have_openmp(void);

#endif
