/* Trains a small Mixture-of-Modules on the bytes of a file, then writes 200 bytes of its own.
 *
 *     train [--steps N] [--temperature T] [--check] FILE
 *
 * This is the whole way from nothing to a trained model with the C core alone. Read it from top to bottom.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/rng.h"
#include "model/decoder.h"
#include "model/gpt.h"
#include "ops/adamw.h"

#define BATCH 8      /* sequences per step */
#define LENGTH 64    /* tokens per sequence */
#define SAMPLE 200   /* bytes written at the end */
#define WARMUP 20    /* steps in which the learning rate rises */
#define SEED 1

/* The model. Every token is a byte. The body is one block with a pool of 4 attention modules and 4 feed-forward modules. In
 * each of 2 rounds a router picks 2 of each for every token, or SKIP, which is the fifth output of a router. */
static const mom_config config = {
    .V = 256, .P = LENGTH + SAMPLE, .C = 64, .H = 4, .F = 256,
    .bottom = 1, .chunks = 1, .top = 1, .rounds = 2, /* an ordinary layer below and above the block */
    .num_attn = 4, .num_ffn = 4, .choices_attn = 5, .choices_ffn = 5, .top_k = 2,
    .router_kind = MOM_ROUTER_GRU, .router_softmax = 1, .R = 32, .temperature = 1.0f, .renormalise = 1,
    .balance_enabled = 1, .ln_eps = 1e-5f, .scale_attention = 1, .init_range = 0.02f, .anchor_proj_range = 0.02f,
};

/* Every call of the core that can fail says why in `err`. */
static void must(mom_status status, const mom_error *err) {
    if (status != MOM_OK) {
        fprintf(stderr, "train: %s\n", err->text);
        exit(1);
    }
}

/* The bytes of a file, or NULL. */
static unsigned char *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    if (!file)
        return NULL;
    fseek(file, 0, SEEK_END);
    const long length = ftell(file);
    rewind(file);
    unsigned char *bytes = length > 0 ? malloc((size_t)length) : NULL;
    *size = bytes ? fread(bytes, 1, (size_t)length, file) : 0;
    fclose(file);
    return bytes;
}

/* ---- the optimizer: two moments for every parameter */

typedef struct {
    mom_adamw_tensor *tensors; /* by parameter */
    float *exp_avg, *exp_avg_sq;
} optimizer;

static void optimizer_init(optimizer *o, const mom_params *params) {
    mom_error err;
    o->exp_avg = mom_memory_calloc(params->total, sizeof(float), "optimizer", &err);
    o->exp_avg_sq = mom_memory_calloc(params->total, sizeof(float), "optimizer", &err);
    o->tensors = mom_memory_calloc(params->count, sizeof *o->tensors, "optimizer", &err);
    must(o->exp_avg && o->exp_avg_sq && o->tensors ? MOM_OK : MOM_ERR_MEMORY, &err);
}

static void optimizer_free(optimizer *o) {
    mom_memory_free(o->exp_avg);
    mom_memory_free(o->exp_avg_sq);
    mom_memory_free(o->tensors);
}

/* Clips the gradients to length 1 and updates the parameters. A module that no token chose has no gradient in this step
 * and stays as it is. Returns the length of the gradients before clipping. */
static double optimizer_step(optimizer *o, mom_gpt *gpt, const mom_exec *exec, double lr) {
    const mom_params *p = &gpt->params;
    mom_adamw_spec spec = {.lr = lr, .beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .weight_decay = 0.1};
    double norm;
    mom_error err;
    for (size_t i = 0; i < p->count; i++)
        o->tensors[i] = (mom_adamw_tensor){.param = mom_param_value(p, i), .grad = mom_param_grad(&gpt->gradients, p, i),
                                           .exp_avg = o->exp_avg + p->table[i].offset,
                                           .exp_avg_sq = o->exp_avg_sq + p->table[i].offset, .n = p->table[i].count,
                                           .step = o->tensors[i].step, .decay = p->table[i].decay,
                                           .used = gpt->gradients.table[i].used};
    must(mom_grad_norm(exec, &norm, o->tensors, p->count, &err), &err);
    spec.grad_scale = mom_clip_factor(norm, 1.0);
    mom_adamw_step(exec, o->tensors, p->count, &spec);
    mom_gpt_zero_grad(gpt, exec);
    return norm;
}

/* ---- training */

/* One step on BATCH random pieces of the text. Returns the loss: nats per byte. */
static double train_step(mom_gpt *gpt, optimizer *o, const mom_exec *exec, const unsigned char *text, size_t size,
                         size_t step) {
    int32_t tokens[BATCH * LENGTH];
    for (size_t b = 0; b < BATCH; b++) {
        const size_t start = mom_rng_u64(SEED, step * BATCH + b) % (size - LENGTH + 1);
        for (size_t t = 0; t < LENGTH; t++)
            tokens[b * LENGTH + t] = text[start + t];
    }
    /* The label of a position is the token after it, so labels are the tokens themselves. */
    const mom_batch batch = {.B = BATCH, .T = LENGTH, .tokens = tokens, .labels = tokens, .keep = 1, .training = 1};
    /* The balance loss keeps routers from sending all tokens to the same modules. */
    const float scales[MOM_TERMS] = {[MOM_TERM_LM] = 1.0f, [MOM_TERM_BALANCE] = 0.01f};
    const double warmup = step < WARMUP ? (double)(step + 1) / WARMUP : 1.0;
    mom_losses losses;
    mom_error err;
    must(mom_gpt_forward(gpt, exec, &batch, &losses, &err), &err);
    must(mom_gpt_backward(gpt, exec, scales, &err), &err);
    const double norm = optimizer_step(o, gpt, exec, 3e-3 * warmup);
    if (step % 10 == 0)
        printf("step %4zu  loss %.4f  balance %.4f  gradient %.3f\n", step, losses.value[MOM_TERM_LM],
               losses.value[MOM_TERM_BALANCE], norm);
    return losses.value[MOM_TERM_LM];
}

/* Continues the first bytes of the text, one byte at a time. The decoder keeps keys and values of the bytes before. */
static void sample(mom_gpt *gpt, const mom_exec *exec, const unsigned char *text, float temperature) {
    const mom_sampling sampling = {.temperature = temperature, .top_p = 1.0f, .seed = SEED};
    int32_t prompt[LENGTH], made[SAMPLE];
    uint8_t finished = 0;
    size_t count;
    mom_decoder decoder;
    mom_error err;
    for (size_t t = 0; t < LENGTH; t++)
        prompt[t] = text[t];
    must(mom_decoder_init(&decoder, gpt, MOM_GEMV_F32, exec, &err), &err);
    must(mom_decoder_append(&decoder, exec, prompt, NULL, 1, LENGTH, &err), &err);
    must(mom_decoder_generate(&decoder, exec, made, &finished, &count, &sampling, -1, SAMPLE, &err), &err);
    printf("%.*s|", LENGTH, (const char *)text);
    for (size_t i = 0; i < count; i++)
        putchar(made[i]);
    printf("\n");
    mom_decoder_free(&decoder);
}

int main(int argc, char **argv) {
    const char *path = NULL;
    size_t steps = 500, size = 0;
    float temperature = 0.8f; /* 0: always the likeliest byte */
    int check = 0;            /* fail unless the loss falls */
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--steps") == 0 && i + 1 < argc)
            steps = (size_t)atol(argv[++i]);
        else if (strcmp(argv[i], "--temperature") == 0 && i + 1 < argc)
            temperature = (float)atof(argv[++i]);
        else if (strcmp(argv[i], "--check") == 0)
            check = 1;
        else
            path = argv[i];
    }
    unsigned char *text = path ? read_file(path, &size) : NULL;
    if (!text || size < LENGTH) {
        fprintf(stderr, "usage: train [--steps N] [--temperature T] [--check] FILE   (a file of at least %d bytes)\n",
                LENGTH);
        free(text);
        return 2;
    }

    /* What every call needs: the kernels of the best instruction set of this machine, threads, memory for temporaries. */
    mom_arena workspace;
    mom_arena_init(&workspace, "workspace");
    const mom_exec exec = {.k = mom_kernels_best(), .threads = mom_available_cpus(), .workspace = &workspace};
    mom_error err;
    mom_gpt gpt;
    optimizer o;
    must(mom_gpt_init(&gpt, &config, &err), &err);
    mom_params_randomize(&exec, &gpt.params, SEED);
    optimizer_init(&o, &gpt.params);
    printf("%zu parameters, level %s, %d threads, %zu bytes of text\n", gpt.params.total, exec.k->name, exec.threads, size);

    double first = 0.0, last = 0.0;
    for (size_t step = 0; step < steps; step++) {
        last = train_step(&gpt, &o, &exec, text, size, step);
        first = step == 0 ? last : first;
    }
    printf("loss %.4f at first, %.4f at last\n", first, last);
    sample(&gpt, &exec, text, temperature);

    optimizer_free(&o);
    mom_gpt_free(&gpt);
    mom_arena_free(&workspace);
    free(text);
    return check && !(last < first - 1.0);
}
