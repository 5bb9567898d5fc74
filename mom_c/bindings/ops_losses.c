/* Losses on plain arrays. */
#include "bindings/operators.h"

#include "bindings/call.h"
#include "ops/balance_loss.h"
#include "ops/cross_entropy.h"

/* ------------------------------------------------------------------ cross entropy */

static PyObject *cross_entropy_forward(PyObject *module, PyObject *args) {
    PyObject *logits_o, *labels_o;
    if (!PyArg_ParseTuple(args, "OO:cross_entropy_forward", &logits_o, &labels_o))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const float *logits = mom_arg_f32(&call, "logits", logits_o, "N V+");
    const size_t N = mom_size(&call, 'N'), V = mom_size(&call, 'V');
    const int32_t *labels = mom_arg_i32(&call, "labels", labels_o, "N", 0, (int64_t)V, MOM_IGNORED_LABEL);
    float *loss = mom_new_f32(&call, "N");
    float *lse = mom_new_f32(&call, "N");
    MOM_RUN(&call, mom_cross_entropy_forward(&call.exec, loss, lse, logits, labels, N, V));
    return mom_call_end(&call);
}

static PyObject *cross_entropy_backward(PyObject *module, PyObject *args) {
    PyObject *logits_o, *lse_o, *labels_o;
    float scale;
    if (!PyArg_ParseTuple(args, "OOOf:cross_entropy_backward", &logits_o, &lse_o, &labels_o, &scale))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const float *logits = mom_arg_f32(&call, "logits", logits_o, "N V+");
    const float *lse = mom_arg_f32(&call, "lse", lse_o, "N");
    const size_t N = mom_size(&call, 'N'), V = mom_size(&call, 'V');
    const int32_t *labels = mom_arg_i32(&call, "labels", labels_o, "N", 0, (int64_t)V, MOM_IGNORED_LABEL);
    float *dlogits = mom_new_f32(&call, "N V");
    MOM_RUN(&call, mom_cross_entropy_backward(&call.exec, dlogits, logits, lse, labels, scale, N, V));
    return mom_call_end(&call);
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

static mom_lm_head read_head(mom_call *call, PyObject *hidden, PyObject *wte, PyObject *labels) {
    mom_lm_head in = {.hidden = mom_arg_f32(call, "hidden", hidden, "N C+")};
    in.wte = mom_arg_f32(call, "wte", wte, "V C");
    in.V = mom_size(call, 'V');
    in.C = mom_size(call, 'C');
    find_labelled(call, &in, mom_arg_i32(call, "labels", labels, "N", 0, (int64_t)in.V, MOM_IGNORED_LABEL),
                  mom_size(call, 'N'));
    return in;
}

static PyObject *lm_head_forward(PyObject *module, PyObject *args) {
    PyObject *hidden_o, *wte_o, *labels_o;
    if (!PyArg_ParseTuple(args, "OOO:lm_head_forward", &hidden_o, &wte_o, &labels_o))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const mom_lm_head in = read_head(&call, hidden_o, wte_o, labels_o);
    mom_set_size(&call, 'L', in.n);
    double total = 0.0;
    float *lse = mom_new_f32(&call, "L");
    MOM_RUN(&call, call.status = mom_lm_head_forward(&call.exec, &total, lse, &in, &call.error));
    mom_new_number(&call, total);
    return mom_call_end(&call);
}

static PyObject *lm_head_backward(PyObject *module, PyObject *args) {
    PyObject *hidden_o, *wte_o, *lse_o, *labels_o, *add_to;
    float scale;
    if (!PyArg_ParseTuple(args, "OOOOfO:lm_head_backward", &hidden_o, &wte_o, &lse_o, &labels_o, &scale, &add_to))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const mom_lm_head in = read_head(&call, hidden_o, wte_o, labels_o);
    mom_set_size(&call, 'L', in.n);
    const float *lse = mom_arg_f32(&call, "lse", lse_o, "L");
    float *dhidden = mom_new_sum(&call, "dhidden", add_to, 0, 2, "N C");
    float *dwte = mom_new_sum(&call, "dwte", add_to, 1, 2, "V C");
    MOM_RUN(&call, call.status = mom_lm_head_backward(&call.exec, dhidden, dwte, &in, lse, scale, &call.error));
    return mom_call_end(&call);
}

/* The loss and, unless loss_only is set, its gradients. Rows without a label have a gradient of zero. */
static PyObject *lm_head_gradient(PyObject *module, PyObject *args) {
    PyObject *hidden_o, *wte_o, *labels_o;
    int bf16, loss_only;
    if (!PyArg_ParseTuple(args, "OOOpp:lm_head_gradient", &hidden_o, &wte_o, &labels_o, &bf16, &loss_only))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const mom_lm_head in = read_head(&call, hidden_o, wte_o, labels_o);
    float *dhidden = loss_only ? NULL : mom_new_sum(&call, "dhidden", Py_None, 0, 2, "N C");
    float *dwte = loss_only ? NULL : mom_new_sum(&call, "dwte", Py_None, 1, 2, "V C");
    double total = 0.0;
    call.exec.precision = bf16 ? MOM_BF16 : MOM_F32;
    MOM_RUN(&call, call.status = mom_lm_head_gradient(&call.exec, &total, dhidden, dwte, &in, &call.error));
    mom_new_number(&call, total);
    return mom_call_end(&call);
}

/* ------------------------------------------------------------------ classification */

static PyObject *label_loss(PyObject *module, PyObject *args) {
    PyObject *logits_o, *labels_o;
    int kind;
    float scale;
    if (!PyArg_ParseTuple(args, "OOif:label_loss", &logits_o, &labels_o, &kind, &scale))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    if (kind < MOM_LOSS_MSE || kind > MOM_LOSS_BCE)
        mom_call_fail(&call, PyExc_ValueError, "kind: %d is unknown", kind);
    const int classify = kind == MOM_LOSS_CROSS_ENTROPY;
    const float *logits = mom_arg_f32(&call, "logits", logits_o, classify ? "B L+" : "B+ L+");
    const size_t B = mom_size(&call, 'B'), L = mom_size(&call, 'L');
    const int32_t *classes = NULL;
    const float *values = NULL;
    if (classify)
        classes = mom_arg_i32(&call, "labels", labels_o, "B", 0, (int64_t)L, MOM_IGNORED_LABEL);
    else
        values = mom_arg_f32(&call, "labels", labels_o, "B L");
    double loss = 0.0;
    float *dlogits = mom_new_f32(&call, "B L");
    MOM_RUN(&call, loss = mom_label_loss_compute(&call.exec, dlogits, logits, classes, values, (mom_label_loss)kind,
                                                 scale, B, L));
    mom_new_number(&call, loss);
    return mom_call_end(&call);
}

/* ------------------------------------------------------------------ balance loss */

static PyObject *balance_counts(PyObject *module, PyObject *args) {
    PyObject *scores_o, *mask_o;
    int softmax;
    if (!PyArg_ParseTuple(args, "OOp:balance_counts", &scores_o, &mask_o, &softmax))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const float *scores = mom_arg_f32(&call, "scores", scores_o, "N S+");
    const uint8_t *mask = mom_arg_mask(&call, "mask", mask_o, "N");
    const size_t N = mom_size(&call, 'N'), S = mom_size(&call, 'S');
    double *counts = mom_new_f64(&call, "S"), *prob_sums = mom_new_f64(&call, "S"), tokens = 0.0;
    for (size_t i = 0; i < S && !call.failed; i++)
        counts[i] = prob_sums[i] = 0.0;
    const mom_balance_scores in = {scores, mask, softmax, N, S};
    MOM_RUN(&call, call.status = mom_balance_accumulate(&call.exec, counts, prob_sums, &tokens, &in, &call.error));
    mom_new_number(&call, tokens);
    return mom_call_end(&call);
}

static PyObject *balance_loss(PyObject *module, PyObject *args) {
    PyObject *counts_o, *prob_sums_o;
    double count_tokens, tokens;
    if (!PyArg_ParseTuple(args, "OdOd:balance_loss", &counts_o, &count_tokens, &prob_sums_o, &tokens))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const double *counts = mom_arg_f64(&call, "counts", counts_o, "S+");
    const double *prob_sums = mom_arg_f64(&call, "prob_sums", prob_sums_o, "S");
    mom_new_number(&call, call.failed ? 0.0
                                      : mom_balance_loss(counts, count_tokens, prob_sums, tokens, mom_size(&call, 'S')));
    return mom_call_end(&call);
}

static PyObject *balance_backward(PyObject *module, PyObject *args) {
    PyObject *scores_o, *mask_o, *counts_o, *add_to;
    double count_tokens, tokens;
    float scale;
    int softmax;
    if (!PyArg_ParseTuple(args, "OOOddfpO:balance_backward", &scores_o, &mask_o, &counts_o, &count_tokens, &tokens,
                          &scale, &softmax, &add_to))
        return NULL;
    mom_call call;
    mom_call_begin(&call, module);
    const float *scores = mom_arg_f32(&call, "scores", scores_o, "N S+");
    const uint8_t *mask = mom_arg_mask(&call, "mask", mask_o, "N");
    const double *counts = mom_arg_f64(&call, "counts", counts_o, "S+");
    float *dscores = mom_new_sum(&call, "dscores", add_to, 0, 1, "N S");
    const size_t N = mom_size(&call, 'N'), S = mom_size(&call, 'S');
    const mom_balance_scores in = {scores, mask, softmax, N, S};
    MOM_RUN(&call, mom_balance_backward(&call.exec, dscores, &in, counts, count_tokens, tokens, scale));
    return mom_call_end(&call);
}

static PyMethodDef functions[] = {
    {"cross_entropy_forward", cross_entropy_forward, METH_VARARGS,
     "cross_entropy_forward($module, logits, labels, /)\n--\n\nloss, lse"},
    {"cross_entropy_backward", cross_entropy_backward, METH_VARARGS,
     "cross_entropy_backward($module, logits, lse, labels, scale, /)\n--\n\ndlogits"},
    {"lm_head_forward", lm_head_forward, METH_VARARGS,
     "lm_head_forward($module, hidden, wte, labels, /)\n--\n\nlse of the labelled rows, sum of losses"},
    {"lm_head_backward", lm_head_backward, METH_VARARGS,
     "lm_head_backward($module, hidden, wte, lse, labels, scale, add_to, /)\n--\n\ndhidden, dwte"},
    {"lm_head_gradient", lm_head_gradient, METH_VARARGS,
     "lm_head_gradient($module, hidden, wte, labels, bfloat16, loss_only, /)\n--\n\ndhidden, dwte, sum of losses; or the "
     "sum alone"},
    {"label_loss", label_loss, METH_VARARGS,
     "label_loss($module, logits, labels, kind, scale, /)\n--\n\ndlogits, loss"},
    {"balance_counts", balance_counts, METH_VARARGS,
     "balance_counts($module, scores, mask, softmax, /)\n--\n\ncounts, prob_sums, tokens"},
    {"balance_loss", balance_loss, METH_VARARGS,
     "balance_loss($module, counts, count_tokens, prob_sums, tokens, /)\n--\n\nloss"},
    {"balance_backward", balance_backward, METH_VARARGS,
     "balance_backward($module, scores, mask, counts, count_tokens, tokens, scale, softmax, add_to, /)\n--\n\ndscores"},
    {NULL, NULL, 0, NULL}};

int mom_add_loss_functions(PyObject *module) { return PyModule_AddFunctions(module, functions); }
