#include "ops/embedding.h"

#include "base/sizes.h"

#define ROWS ((size_t)32)     /* tokens per task, forward */
#define COLUMNS ((size_t)32)  /* channels per task, backward */
#define GROUPS ((size_t)4)    /* into which the rows of a table fall, backward */

typedef struct {
    const mom_kernels *k;
    float *out;
    const int32_t *tokens, *positions;
    const float *wte, *wpe;
    mom_dropout dropout;
    size_t C;
} forward_job;

static void forward_task(const void *context, size_t begin, size_t end) {
    const forward_job *job = context;
    const size_t C = job->C;
    for (size_t t = begin; t < end; t++) {
        const float *restrict token = job->wte + (size_t)job->tokens[t] * C;
        const float *restrict position = job->wpe + (size_t)job->positions[t] * C;
        float *restrict out = job->out + t * C;
        for (size_t c = 0; c < C; c++)
            out[c] = token[c] + position[c];
        if (job->dropout.p > 0.0f)
            job->k->vec.dropout(out, out, job->dropout, t * C, C);
    }
}

void mom_embedding_forward(const mom_exec *x, float *out, const int32_t *tokens, const int32_t *positions,
                           const float *wte, const float *wpe, mom_dropout dropout, size_t N, size_t C) {
    forward_job job = {x->k, out, tokens, positions, wte, wpe, dropout, C};
    mom_parallel_rows(x, N, ROWS, forward_task, &job);
}

typedef struct {
    const mom_kernels *k;
    float *table[2];        /* dwte, dwpe */
    const int32_t *rows[2]; /* tokens, positions */
    const float *dout;
    mom_dropout dropout;
    size_t N, C;
} backward_job;

/* Some columns of a group of rows of one table: those with row % GROUPS == group. Each row's sum runs in the order of the
 * tokens. */
static void backward_task(void *context, size_t task, int thread) {
    const backward_job *job = context;
    const size_t C = job->C, of = task / GROUPS % 2, begin = task / GROUPS / 2 * COLUMNS, width = mom_min(C - begin, COLUMNS);
    float kept[COLUMNS];
    (void)thread;
    for (size_t t = 0; t < job->N; t++) {
        const size_t row = (size_t)job->rows[of][t];
        if (row % GROUPS != task % GROUPS)
            continue;
        const float *dout = job->dout + t * C + begin;
        if (job->dropout.p > 0.0f) {
            job->k->vec.dropout(kept, dout, job->dropout, t * C + begin, width);
            dout = kept;
        }
        job->k->vec.add(job->table[of] + row * C + begin, dout, width);
    }
}

void mom_embedding_backward(const mom_exec *x, float *dwte, float *dwpe, const float *dout, const int32_t *tokens,
                            const int32_t *positions, mom_dropout dropout, size_t N, size_t C) {
    backward_job job = {x->k, {dwte, dwpe}, {tokens, positions}, dout, dropout, N, C};
    mom_parallel_for(x, 2 * GROUPS * mom_div_up(C, COLUMNS), backward_task, &job);
}
