#include "base/exec.h"

#include <string.h>

#include "base/sizes.h"

mom_status mom_check_stop(const mom_exec *x, mom_error *err) {
    if (!x->stop || x->dry_run || !x->stop())
        return MOM_OK;
    return mom_error_set(err, MOM_ERR_STOPPED, "stopped");
}

void mom_parallel_for(const mom_exec *x, size_t tasks, mom_task run, void *context) {
    if (!x->dry_run)
        mom_parallel_run(x->threads, tasks, run, context);
}

typedef struct {
    size_t n, most;
    mom_rows_task run;
    const void *context;
} rows_loop;

static void run_rows(void *context, size_t task, int thread) {
    const rows_loop *loop = context;
    (void)thread;
    loop->run(loop->context, task * loop->most, mom_min(loop->n, (task + 1) * loop->most));
}

void mom_parallel_rows(const mom_exec *x, size_t n, size_t most, mom_rows_task run, const void *context) {
    rows_loop loop = {n, most, run, context};
    mom_parallel_for(x, mom_div_up(n, most), run_rows, &loop);
}

void mom_zero(const mom_exec *x, void *out, size_t bytes) {
    if (!x->dry_run)
        memset(out, 0, bytes);
}

void mom_copy(const mom_exec *x, void *out, const void *from, size_t bytes) {
    if (!x->dry_run)
        memcpy(out, from, bytes);
}

void mom_copy_rows(const mom_exec *x, void *out, size_t out_stride, const void *from, size_t from_stride, size_t rows,
                   size_t bytes) {
    unsigned char *to = out;
    const unsigned char *source = from;
    for (size_t i = 0; i < rows && !x->dry_run; i++)
        memcpy(to + i * out_stride, source + i * from_stride, bytes);
}
