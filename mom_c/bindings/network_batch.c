#include "bindings/network_batch.h"

#include "bindings/convert.h"
#include "bindings/routes.h"

typedef struct {
    PyObject *tokens, *lengths, *labels, *mask, *positions, *pooled, *classes, *values, *rows; /* borrowed */
} batch_objects;

/* Checks that ids are in [0, high), or MOM_IGNORED_LABEL where that is allowed. */
static int check_ids(const int32_t *values, size_t n, size_t high, int ignored, const char *name, const char *limit) {
    for (size_t i = 0; values && i < n; i++) {
        if ((values[i] < 0 || (size_t)values[i] >= high) && !(ignored && values[i] == MOM_IGNORED_LABEL)) {
            PyErr_Format(PyExc_ValueError, "%s: %d at position %zu is not in [0, %zu) (%s)", name, values[i], i, high,
                         limit);
            return -1;
        }
    }
    return 0;
}

int mom_read_rows(PyObject *object, size_t N, const int32_t **rows, size_t *count) {
    const npy_intp any[1] = {-1};
    PyArrayObject *array = mom_check_array(object, "rows", NPY_INT32, 1, any, 0); /* borrowed */
    if (!array)
        return -1;
    *rows = PyArray_DATA(array);
    *count = (size_t)PyArray_DIM(array, 0);
    return check_ids(*rows, *count, N, 0, "rows", "rows of the batch");
}

/* Reads the lengths of the sequences that make up N packed tokens. Each is at most `longest`. Fills B, T and lengths of
 * the batch. */
static int read_lengths(PyObject *object, size_t N, size_t longest, const char *limit, mom_batch *batch) {
    const npy_intp any[1] = {-1};
    PyArrayObject *array = mom_check_array(object, "lengths", NPY_INT32, 1, any, 0); /* borrowed */
    if (!array)
        return -1;
    batch->lengths = PyArray_DATA(array);
    batch->B = (size_t)PyArray_DIM(array, 0);
    batch->T = 0;
    size_t total = 0;
    for (size_t b = 0; b < batch->B; b++) {
        if (batch->lengths[b] < 1 || (size_t)batch->lengths[b] > longest) {
            PyErr_Format(PyExc_ValueError, "lengths: %d at position %zu is not in [1, %zu] (%s)", batch->lengths[b], b,
                         longest, limit);
            return -1;
        }
        const size_t length = (size_t)batch->lengths[b];
        total += length;
        batch->T = length > batch->T ? length : batch->T;
    }
    if (total != N) {
        PyErr_Format(PyExc_ValueError, "lengths: sum %zu, expected %zu like tokens", total, N);
        return -1;
    }
    return 0;
}

/* Tokens (B, T), or packed tokens (N) and their lengths. Returns the array (borrowed). */
static PyArrayObject *read_tokens(const batch_objects *in, const mom_config *c, mom_batch *batch) {
    const npy_intp any[2] = {-1, -1};
    const int ndim = in->lengths == Py_None ? 2 : 1;
    PyArrayObject *tokens = mom_check_array(in->tokens, "tokens", NPY_INT32, ndim, any, 0); /* borrowed */
    if (!tokens)
        return NULL;
    const npy_intp *shape = PyArray_DIMS(tokens);
    const size_t N = (size_t)PyArray_SIZE(tokens);
    if (!N) {
        char have[64];
        mom_format_shape(have, sizeof have, ndim, shape);
        PyErr_Format(PyExc_ValueError, "tokens: shape %s is empty", have);
        return NULL;
    }
    if (N > INT32_MAX) {
        PyErr_Format(PyExc_ValueError, "tokens: %zu tokens in one batch are more than %d", N, INT32_MAX);
        return NULL;
    }
    batch->tokens = PyArray_DATA(tokens);
    if (ndim == 2) {
        batch->B = (size_t)shape[0];
        batch->T = (size_t)shape[1];
    } else if (in->positions == Py_None ? read_lengths(in->lengths, N, c->P, "n_positions", batch) < 0
                                        : read_lengths(in->lengths, N, N, "tokens", batch) < 0) {
        return NULL;
    }
    return tokens;
}

/* NULL for None. Otherwise the data (borrowed) of a C-contiguous array of exactly this type and shape. */
static int optional_array(PyObject *object, const char *name, int type, int ndim, const npy_intp *shape, const void **data) {
    *data = NULL;
    if (object == Py_None)
        return 0;
    PyArrayObject *array = mom_check_array(object, name, type, ndim, shape, 0);
    if (!array)
        return -1;
    *data = PyArray_DATA(array);
    return 0;
}

/* Reads the arrays with an entry per token and those with an entry per sequence. */
static int read_arrays(const batch_objects *in, const mom_config *c, PyArrayObject *tokens, mom_batch *batch) {
    const int ndim = PyArray_NDIM(tokens);
    const npy_intp *shape = PyArray_DIMS(tokens);
    const npy_intp rows[1] = {(npy_intp)batch->B}, values[2] = {rows[0], (npy_intp)c->num_labels};
    if (optional_array(in->labels, "labels", NPY_INT32, ndim, shape, (const void **)&batch->labels) < 0 ||
        optional_array(in->mask, "attention_mask", NPY_UINT8, ndim, shape, (const void **)&batch->mask) < 0 ||
        optional_array(in->positions, "positions", NPY_INT32, ndim, shape, (const void **)&batch->positions) < 0 ||
        optional_array(in->pooled, "pooled", NPY_INT32, 1, rows, (const void **)&batch->pooled) < 0 ||
        optional_array(in->classes, "labels", NPY_INT32, 1, rows, (const void **)&batch->classes) < 0 ||
        optional_array(in->values, "labels", NPY_FLOAT32, 2, values, (const void **)&batch->values) < 0)
        return -1;
    if (in->rows != Py_None &&
        mom_read_rows(in->rows, (size_t)PyArray_SIZE(tokens), &batch->rows, &batch->row_count) < 0)
        return -1;
    if (!batch->positions && batch->T > c->P) {
        PyErr_Format(PyExc_ValueError, "tokens: sequences of %zu tokens, n_positions is %zu", batch->T, c->P);
        return -1;
    }
    return 0;
}

static int check_values(const mom_batch *batch, const mom_config *c, size_t N) {
    if (check_ids(batch->tokens, N, c->V, 0, "tokens", "vocab_size") < 0 ||
        check_ids(batch->labels, N, c->V, 1, "labels", "vocab_size") < 0 ||
        check_ids(batch->positions, N, c->P, 0, "positions", "n_positions") < 0 ||
        check_ids(batch->pooled, batch->B, batch->T, 0, "pooled", "sequence length") < 0 ||
        check_ids(batch->classes, batch->B, c->num_labels, 1, "labels", "num_labels") < 0)
        return -1;
    if ((c->num_labels > 0 && !batch->lengths) != (batch->pooled != NULL) || (c->num_labels && batch->labels)) {
        PyErr_SetString(PyExc_ValueError, "pooled: given exactly for a classifier without lengths, which takes no token "
                                          "labels");
        return -1;
    }
    const int loss = (int)batch->label_loss;
    if (loss < MOM_LOSS_MSE || loss > MOM_LOSS_BCE || (batch->classes && loss != MOM_LOSS_CROSS_ENTROPY) ||
        (batch->values && loss == MOM_LOSS_CROSS_ENTROPY)) {
        PyErr_Format(PyExc_ValueError, "label_loss: %d does not fit the labels", loss);
        return -1;
    }
    return 0;
}

/* Reads None, or (place, round, half, stream, attention's state, feed-forward's state): where a pass of N rows begins. A state
 * is float32 (N, R), or None for a half that has had none by then. */
static int read_begin(PyObject *object, const mom_gpt *gpt, size_t N, const mom_wanted *wanted, mom_begin *begin) {
    Py_ssize_t place, round;
    int half;
    PyObject *stream, *states[2];
    if (object == Py_None)
        return 0;
    if (!PyTuple_Check(object))
        return PyErr_Format(PyExc_TypeError, "begin: expected tuple, got %s", Py_TYPE(object)->tp_name), -1;
    if (!PyArg_ParseTuple(object, "nniOOO:begin", &place, &round, &half, &stream, &states[0], &states[1]))
        return -1;
    if (!mom_find_pool(&gpt->params, place, round, half)) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "begin: no place %zd with a round %zd and a half %d", place, round, half);
        return -1;
    }
    if (wanted->logits || wanted->routes) {
        PyErr_SetString(PyExc_ValueError, "begin: a pass that begins in the middle returns no logits and no routes");
        return -1;
    }
    const npy_intp shape[2] = {(npy_intp)N, (npy_intp)gpt->config.C}, state_shape[2] = {(npy_intp)N, (npy_intp)gpt->config.R};
    PyArrayObject *array = mom_check_array(stream, "begin: stream", NPY_FLOAT32, 2, shape, 0); /* borrowed */
    if (!array)
        return -1;
    *begin = (mom_begin){.place = (size_t)place, .round = (size_t)round, .half = half, .stream = PyArray_DATA(array)};
    for (int h = 0; h < 2; h++) {
        const int has_state = mom_pool_has_state(mom_place_pool(&gpt->params.places[place], h)) && (round > 0 || h < half);
        if (!has_state && states[h] == Py_None)
            continue;
        if (!has_state)
            return PyErr_Format(PyExc_ValueError, "begin: half %d has no state before place %zd, round %zd", h, place, round), -1;
        if (!(array = mom_check_array(states[h], "begin: state", NPY_FLOAT32, 2, state_shape, 0)))
            return -1;
        begin->states[h] = PyArray_DATA(array);
    }
    return 0;
}

int mom_read_batch(PyObject *args, PyObject *kwargs, const mom_gpt *gpt, mom_batch *batch, mom_wanted *wanted,
                   mom_held_interventions **held) {
    static char *names[] = {"tokens", "lengths", "labels", "mask", "positions", "pooled", "classes", "values",
                            "label_loss", "keep", "training", "checkpoint", "rows", "logits", "routes",
                            "interventions", "begin", NULL};
    const mom_config *config = &gpt->config;
    PyObject *interventions = Py_None, *begin = Py_None;
    batch_objects in = {Py_None, Py_None, Py_None, Py_None, Py_None, Py_None, Py_None, Py_None, Py_None};
    int label_loss = 0;
    *batch = (mom_batch){0};
    *wanted = (mom_wanted){0, 0};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|OOOOOOOipppOppOO:forward", names, &in.tokens, &in.lengths, &in.labels,
                                     &in.mask, &in.positions, &in.pooled, &in.classes, &in.values, &label_loss,
                                     &batch->keep, &batch->training, &batch->checkpoint, &in.rows, &wanted->logits,
                                     &wanted->routes, &interventions, &begin))
        return -1;
    batch->all_rows = wanted->logits && in.rows == Py_None && !config->num_labels;
    batch->label_loss = (mom_label_loss)label_loss;
    PyArrayObject *tokens = read_tokens(&in, config, batch); /* borrowed */
    if (!tokens || read_arrays(&in, config, tokens, batch) < 0 || check_values(batch, config, (size_t)PyArray_SIZE(tokens)) < 0 ||
        read_begin(begin, gpt, (size_t)PyArray_SIZE(tokens), wanted, &batch->begin) < 0 ||
        mom_hold_interventions(interventions, gpt, batch, (size_t)PyArray_SIZE(tokens), held) < 0)
        return -1;
    batch->interventions = mom_interventions_of(*held);
    return 0;
}
