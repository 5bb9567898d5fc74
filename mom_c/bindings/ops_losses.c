/* Losses on plain arrays. */
#include "bindings/operators.h"

#include "bindings/call.h"
#include "ops/balance_loss.h"
#include "ops/cross_entropy.h"

/* ------------------------------------------------------------------ cross entropy */

static void cross_entropy_forward(mom_call *call) {
    const float *logits = mom_arg_f32(call, "logits", "N V+");
    const size_t N = mom_size(call, 'N'), V = mom_size(call, 'V');
    const int32_t *labels = mom_arg_labels(call, "labels", "N", V);
    float *loss = mom_new_f32(call, "N");
    float *lse = mom_new_f32(call, "N");
    MOM_RUN(call, mom_cross_entropy_forward(&call->exec, loss, lse, logits, labels, N, V));
}

static void cross_entropy_backward(mom_call *call) {
    const float scale = mom_arg_float(call, "scale");
    const float *logits = mom_arg_f32(call, "logits", "N V+");
    const float *lse = mom_arg_f32(call, "lse", "N");
    const size_t N = mom_size(call, 'N'), V = mom_size(call, 'V');
    const int32_t *labels = mom_arg_labels(call, "labels", "N", V);
    float *dlogits = mom_new_f32(call, "N V");
    MOM_RUN(call, mom_cross_entropy_backward(&call->exec, dlogits, logits, lse, labels, scale, N, V));
}

/* ------------------------------------------------------------------ the tied head */

/* Collects the labelled rows and their labels in arrays in the workspace. */
static void find_labelled(mom_call *call, mom_lm_head *head, const int32_t *labels, size_t N) {
    int32_t *rows = mom_call_alloc(call, N, sizeof *rows), *found = mom_call_alloc(call, N, sizeof *found);
    head->rows = rows;
    head->labels = found;
    for (size_t i = 0; found && i < N; i++) {
        if (labels[i] == MOM_IGNORED_LABEL)
            continue;
        rows[head->n] = (int32_t)i;
        found[head->n++] = labels[i];
    }
}

static mom_lm_head read_head(mom_call *call) {
    mom_lm_head in = {.hidden = mom_arg_f32(call, "hidden", "N C+")};
    in.wte = mom_arg_f32(call, "wte", "V C");
    in.V = mom_size(call, 'V');
    in.C = mom_size(call, 'C');
    find_labelled(call, &in, mom_arg_labels(call, "labels", "N", in.V), mom_size(call, 'N'));
    return in;
}

static void lm_head_forward(mom_call *call) {
    const mom_lm_head in = read_head(call);
    mom_set_size(call, 'L', in.n);
    double total = 0.0;
    float *lse = mom_new_f32(call, "L");
    MOM_RUN(call, call->status = mom_lm_head_forward(&call->exec, &total, lse, &in, &call->error));
    mom_new_number(call, total);
}

static void lm_head_backward(mom_call *call) {
    const float scale = mom_arg_float(call, "scale");
    const mom_lm_head in = read_head(call);
    mom_set_size(call, 'L', in.n);
    const float *lse = mom_arg_f32(call, "lse", "L");
    float *dhidden = mom_new_sum(call, "dhidden", 0, 2, "N C");
    float *dwte = mom_new_sum(call, "dwte", 1, 2, "V C");
    MOM_RUN(call, call->status = mom_lm_head_backward(&call->exec, dhidden, dwte, &in, lse, scale, &call->error));
}

/* The loss and, unless loss_only is set, its gradients. Rows without a label have a gradient of zero. */
static void lm_head_gradient(mom_call *call) {
    const int bf16 = mom_arg_flag(call, "bfloat16");
    const int loss_only = mom_arg_flag(call, "loss_only");
    const mom_lm_head in = read_head(call);
    float *dhidden = loss_only ? NULL : mom_new_copy(call, "dhidden", Py_None, "N C");
    float *dwte = loss_only ? NULL : mom_new_copy(call, "dwte", Py_None, "V C");
    double total = 0.0;
    call->exec.precision = bf16 ? MOM_BF16 : MOM_F32;
    MOM_RUN(call, call->status = mom_lm_head_gradient(&call->exec, &total, dhidden, dwte, &in, &call->error));
    mom_new_number(call, total);
}

/* ------------------------------------------------------------------ classification */

static void label_loss(mom_call *call) {
    const size_t kind = mom_arg_size(call, "kind");
    const float scale = mom_arg_float(call, "scale");
    if (kind > MOM_LOSS_BCE)
        mom_call_fail(call, PyExc_ValueError, "kind: %zu is unknown", kind);
    const int classify = kind == MOM_LOSS_CROSS_ENTROPY;
    const float *logits = mom_arg_f32(call, "logits", classify ? "B L+" : "B+ L+");
    const size_t B = mom_size(call, 'B'), L = mom_size(call, 'L');
    const int32_t *classes = NULL;
    const float *values = NULL;
    if (classify)
        classes = mom_arg_labels(call, "labels", "B", L);
    else
        values = mom_arg_f32(call, "labels", "B L");
    double loss = 0.0;
    float *dlogits = mom_new_f32(call, "B L");
    MOM_RUN(call, loss = mom_label_loss_compute(&call->exec, dlogits, logits, classes, values, (mom_label_loss)kind,
                                                 scale, B, L));
    mom_new_number(call, loss);
}

/* ------------------------------------------------------------------ balance loss */

static void balance_counts(mom_call *call) {
    const int softmax = mom_arg_flag(call, "softmax");
    const float *scores = mom_arg_f32(call, "scores", "N S+");
    const uint8_t *mask = mom_arg_mask(call, "mask", "N");
    const size_t N = mom_size(call, 'N'), S = mom_size(call, 'S');
    double *counts = mom_new_f64(call, "S"), *prob_sums = mom_new_f64(call, "S"), tokens = 0.0;
    for (size_t i = 0; i < S && !call->failed; i++)
        counts[i] = prob_sums[i] = 0.0;
    const mom_balance_scores in = {.scores = scores, .mask = mask, .softmax = softmax, .N = N, .S = S};
    MOM_RUN(call, call->status = mom_balance_accumulate(&call->exec, counts, prob_sums, &tokens, &in, &call->error));
    mom_new_number(call, tokens);
}

static void balance_loss(mom_call *call) {
    const double count_tokens = mom_arg_double(call, "count_tokens");
    const double tokens = mom_arg_double(call, "tokens");
    const double *counts = mom_arg_f64(call, "counts", "S+");
    const double *prob_sums = mom_arg_f64(call, "prob_sums", "S");
    mom_new_number(call, call->failed ? 0.0
                                      : mom_balance_loss(counts, count_tokens, prob_sums, tokens, mom_size(call, 'S')));
}

static void balance_backward(mom_call *call) {
    const double count_tokens = mom_arg_double(call, "count_tokens");
    const double tokens = mom_arg_double(call, "tokens");
    const float scale = mom_arg_float(call, "scale");
    const int softmax = mom_arg_flag(call, "softmax");
    const float *scores = mom_arg_f32(call, "scores", "N S+");
    const uint8_t *mask = mom_arg_mask(call, "mask", "N");
    const double *counts = mom_arg_f64(call, "counts", "S+");
    float *dscores = mom_new_sum(call, "dscores", 0, 1, "N S");
    const size_t N = mom_size(call, 'N'), S = mom_size(call, 'S');
    const mom_balance_scores in = {.scores = scores, .mask = mask, .softmax = softmax, .N = N, .S = S};
    MOM_RUN(call, mom_balance_backward(&call->exec, dscores, &in, counts, count_tokens, tokens, scale));
}

static mom_operator operators[] = {
    MOM_OPERATOR(cross_entropy_forward, "logits, labels", "loss, lse"),
    MOM_OPERATOR(cross_entropy_backward, "logits, lse, labels, scale", "dlogits"),
    MOM_OPERATOR(lm_head_forward, "hidden, wte, labels", "lse of the labelled rows, sum of losses"),
    MOM_OPERATOR(lm_head_backward, "hidden, wte, lse, labels, scale, add_to", "dhidden, dwte"),
    MOM_OPERATOR(lm_head_gradient, "hidden, wte, labels, bfloat16, loss_only",
                 "dhidden, dwte, sum of losses; or the sum alone"),
    MOM_OPERATOR(label_loss, "logits, labels, kind, scale", "dlogits, loss"),
    MOM_OPERATOR(balance_counts, "scores, mask, softmax", "counts, prob_sums, tokens"),
    MOM_OPERATOR(balance_loss, "counts, count_tokens, prob_sums, tokens", "loss"),
    MOM_OPERATOR(balance_backward, "scores, mask, counts, count_tokens, tokens, scale, softmax, add_to", "dscores"),
};

int mom_add_loss_functions(PyObject *module) {
    return mom_add_operators(module, operators, sizeof operators / sizeof *operators);
}
