/* Time of a train step outside of loops over tasks, on one thread: by Amdahl's law, what limits many threads.
 *
 *     make -C mom_c library
 *     cc -O2 -Imom_c benchmarks/serial_share.c build/core/plain/libmom.a -fopenmp -lm -o build/serial_share \
 *         -Wl,--wrap=mom_parallel_run -Wl,--wrap=mom_parallel_run_in_order
 *     build/serial_share [STEPS]
 *
 * The model has the shape of the preset base, in bfloat16, with 4 x 512 tokens. The linker puts the functions below in
 * place of those that run loops, and these add up the time.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/rng.h"
#include "model/gpt.h"
#include "ops/adamw.h"

#define BATCH 4
#define LENGTH 512

static const mom_config config = {
    .V = 16384, .P = LENGTH, .C = 512, .H = 8, .F = 2048, .bottom = 1, .chunks = 1, .top = 1, .rounds = 4,
    .num_attn = 4, .num_ffn = 4, .choices_attn = 5, .choices_ffn = 5, .top_k = 2, .router_kind = MOM_ROUTER_GRU,
    .router_softmax = 1, .R = 256, .temperature = 0.2f, .renormalise = 1, .balance_enabled = 1, .ln_eps = 1e-5f,
    .scale_attention = 1, .init_range = 0.02f, .anchor_proj_range = 0.01f, .dtype = MOM_BF16,
};

static double in_loops;
static long loops;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef void (*loop_function)(int threads, size_t tasks, mom_task run, void *context);

static void timed(loop_function loop, int threads, size_t tasks, mom_task run, void *context) {
    const double begin = now();
    loop(threads, tasks, run, context);
    in_loops += now() - begin;
    loops++;
}

void __real_mom_parallel_run(int threads, size_t tasks, mom_task run, void *context);
void __real_mom_parallel_run_in_order(int threads, size_t tasks, mom_task run, void *context);
void __wrap_mom_parallel_run(int threads, size_t tasks, mom_task run, void *context);
void __wrap_mom_parallel_run_in_order(int threads, size_t tasks, mom_task run, void *context);

void __wrap_mom_parallel_run(int threads, size_t tasks, mom_task run, void *context) {
    timed(__real_mom_parallel_run, threads, tasks, run, context);
}

void __wrap_mom_parallel_run_in_order(int threads, size_t tasks, mom_task run, void *context) {
    timed(__real_mom_parallel_run_in_order, threads, tasks, run, context);
}

static void must(mom_status status, const mom_error *err) {
    if (status != MOM_OK) {
        fprintf(stderr, "serial_share: %s\n", err->text);
        exit(1);
    }
}

/* All parameters have a gradient in such a batch. */
static mom_adamw_tensor *all_tensors(mom_gpt *gpt) {
    const mom_params *p = &gpt->params;
    mom_error err;
    float *moments = mom_memory_calloc(2 * p->total, sizeof *moments, "moments", &err);
    mom_adamw_tensor *tensors = mom_memory_calloc(p->count, sizeof *tensors, "optimizer", &err);
    must(moments && tensors ? MOM_OK : MOM_ERR_MEMORY, &err);
    for (size_t i = 0; i < p->count; i++)
        tensors[i] = (mom_adamw_tensor){.param = mom_param_value(p, i), .grad = mom_param_grad(&gpt->gradients, p, i),
                                        .exp_avg = moments + p->table[i].offset, .n = p->table[i].count, .used = 1,
                                        .exp_avg_sq = moments + p->total + p->table[i].offset};
    return tensors;
}

static void step(mom_gpt *gpt, const mom_exec *x, mom_adamw_tensor **tensors, const int32_t *tokens) {
    const mom_batch batch = {.B = BATCH, .T = LENGTH, .tokens = tokens, .labels = tokens, .keep = 1, .training = 1};
    const float scales[MOM_TERMS] = {[MOM_TERM_LM] = 1.0f, [MOM_TERM_BALANCE] = 0.01f};
    mom_adamw_spec spec = {.lr = 1e-3, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-5, .weight_decay = 0.1};
    mom_losses losses;
    double norm;
    mom_error err;
    must(mom_gpt_forward(gpt, x, &batch, &losses, &err), &err);
    must(mom_gpt_backward(gpt, x, scales, &err), &err);
    if (!*tensors)
        *tensors = all_tensors(gpt);
    must(mom_grad_norm(x, &norm, *tensors, gpt->params.count, &err), &err);
    spec.grad_scale = mom_clip_factor(norm, 1.0);
    mom_adamw_step(x, *tensors, gpt->params.count, &spec);
    mom_gpt_zero_grad(gpt, x);
}

int main(int argc, char **argv) {
    static int32_t tokens[BATCH * LENGTH];
    mom_adamw_tensor *tensors = NULL;
    mom_arena workspace;
    mom_error err;
    mom_gpt gpt;
    mom_arena_init(&workspace, "workspace");
    const mom_exec x = {.k = mom_kernels_best(), .threads = 1, .workspace = &workspace, .precision = MOM_BF16};
    must(mom_gpt_init(&gpt, &config, &err), &err);
    mom_params_randomize(&x, &gpt.params, 1);
    for (size_t i = 0; i < BATCH * LENGTH; i++)
        tokens[i] = (int32_t)(mom_rng_u64(1, i) % config.V);
    step(&gpt, &x, &tensors, tokens); /* the first step allocates its memory */
    for (int i = argc > 1 ? atoi(argv[1]) : 5; i > 0; i--) {
        in_loops = 0.0;
        loops = 0;
        const double begin = now();
        step(&gpt, &x, &tensors, tokens);
        const double whole = now() - begin, serial = whole - in_loops;
        printf("level %s: %.0f ms, %.2f ms of them outside of %ld loops (%.3f %%); at most %.1fx on 16 threads\n", x.k->name,
               1e3 * whole, 1e3 * serial, loops, 100 * serial / whole, whole / (serial + in_loops / 16));
    }
    return 0;
}
