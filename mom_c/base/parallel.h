/* Threads: one primitive, a loop over tasks that begin in order.
 *
 * Tasks own disjoint outputs (one that reads what earlier ones write waits for them) and every reduction inside a task
 * has a fixed order, so results do not depend on which thread runs a task or on how many there are. Without OpenMP the
 * loop is serial.
 */
#ifndef MOM_BASE_PARALLEL_H
#define MOM_BASE_PARALLEL_H

#include <stdatomic.h>
#include <stddef.h>

#define MOM_MAX_THREADS 256

/* task < tasks; thread < threads tells which per-thread scratch may be used. */
typedef void (*mom_task)(void *context, size_t task, int thread);

/* Tasks begin in order, so that one may wait for earlier ones (which must not wait for later ones). */
void mom_parallel_for(int threads, size_t tasks, mom_task run, void *context);
/* Until other tasks have counted down to 0 (with memory_order_release). */
void mom_wait_until_zero(const atomic_size_t *count);

/* A rehearsal goes through a computation without doing it, for the sizes of what it allocates: until it is ended on the
 * same thread, loops have no tasks and mom_zero and mom_copy do nothing, so that arrays hold rubbish. Serial code
 * must not take indices from arrays while mom_rehearsing. With MOM_REHEARSE_ANY the sizes shall do for any other distribution of
 * rows over the products of a group. */
enum { MOM_REHEARSE_END, MOM_REHEARSE, MOM_REHEARSE_ANY };
void mom_rehearse(int how);
int mom_rehearsing(void);
void mom_zero(void *out, size_t bytes);
void mom_copy(void *out, const void *from, size_t bytes);

/* Splits [0, n) into `parts` ranges of nearly equal size; part p is [begin, end). */
void mom_range(size_t n, size_t parts, size_t p, size_t *begin, size_t *end);

int mom_have_openmp(void);
int mom_available_cpus(void); /* CPUs the process may run on, at least 1 */

#endif
