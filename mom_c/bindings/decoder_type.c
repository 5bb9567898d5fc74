/* _core.Decoder: a batch of sequences that a network continues token by token; see mom.Decoder.
 *
 * A decoder keeps its network alive. Every call claims the network until the call returns, so only one thread at a time
 * uses decoder and network. The GIL is released while the core computes. Arrays that are returned are copies.
 */
#include "bindings/decoder_type.h"

#include <string.h>

#include "bindings/convert.h"
#include "bindings/errors.h"
#include "bindings/model_type.h"
#include "bindings/routes.h"
#include "bindings/runtime.h"
#include "bindings/state.h"
#include "model/decoder.h"
#include "ops/forced_choices.h"

typedef struct {
    PyObject_HEAD
    mom_network *network; /* strong reference */
    mom_decoder decoder;
    int ready; /* the member `decoder` is initialised */
} decoder_object;

static const char *const format_names[] = {"float32", "bfloat16", "int8"};

int mom_read_weight_format(const char *name, mom_gemv_format *format) {
    for (int i = 0; i < 3; i++) {
        if (strcmp(name, format_names[i]) == 0) {
            *format = (mom_gemv_format)i;
            return 0;
        }
    }
    PyErr_Format(PyExc_ValueError, "weights: '%s', expected 'float32', 'bfloat16' or 'int8'", name);
    return -1;
}

static PyObject *decoder_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"network", "weights", NULL};
    mom_state *state = PyType_GetModuleState(type);
    PyObject *network;
    const char *weights = "float32";
    mom_gemv_format format;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!|s:Decoder", names, state->network_type, &network, &weights) ||
        mom_read_weight_format(weights, &format) < 0)
        return NULL;
    if (((mom_network *)network)->gpt.config.num_labels) {
        PyErr_SetString(PyExc_ValueError, "network: a classifier has no next token");
        return NULL;
    }
    decoder_object *self = (decoder_object *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->network = (mom_network *)Py_NewRef(network);
    if (mom_network_enter(self->network) < 0) {
        Py_DECREF(self);
        return NULL;
    }
    const mom_exec exec = mom_current_exec(NULL);
    mom_error err;
    mom_status status;
    MOM_WITHOUT_GIL(status = mom_decoder_init(&self->decoder, &self->network->gpt, format, &exec, &err));
    mom_network_leave(self->network);
    if (status != MOM_OK) {
        mom_raise((PyObject *)type, &err);
        Py_DECREF(self);
        return NULL;
    }
    self->ready = 1;
    return (PyObject *)self;
}

static void decoder_dealloc(decoder_object *self) {
    PyTypeObject *type = Py_TYPE(self);
    if (self->ready)
        mom_decoder_free(&self->decoder);
    Py_XDECREF(self->network);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

/* ------------------------------------------------------------------ tokens in, logits out */

static PyObject *copy_logits(const decoder_object *self) {
    const mom_decoder_batch *batch = &self->decoder.batch;
    const npy_intp dims[2] = {(npy_intp)batch->B, (npy_intp)self->decoder.gpt->config.V};
    return mom_copy_array(2, dims, NPY_FLOAT32, batch->logits);
}

static int check_tokens(const int32_t *tokens, const int32_t *lengths, size_t B, size_t T, size_t V) {
    for (size_t b = 0; b < B; b++) {
        const size_t length = lengths && (size_t)lengths[b] < T ? (size_t)lengths[b] : T;
        for (size_t t = 0; t < length; t++) {
            const int32_t token = tokens[b * T + t];
            if (token < 0 || (size_t)token >= V) {
                PyErr_Format(PyExc_ValueError, "tokens: %d at position %zu is not in [0, %zu) (vocab_size), row %zu",
                             token, t, V, b);
                return -1;
            }
        }
    }
    return 0;
}

/* After a call. The pass that read a first prompt has no backward pass, so nothing refers to them any more. */
static void forget_interventions(decoder_object *self, mom_held_interventions *held) {
    if (held && self->network->gpt.last.pass.interventions == mom_interventions_of(held))
        self->network->gpt.last.pass.interventions = NULL;
    self->decoder.interventions = NULL;
    mom_release_interventions(held);
}

/* What the decoder is given: tokens (B, T), lengths (B) or NULL, and interventions or None. */
typedef struct {
    const int32_t *tokens, *lengths;
    size_t B, T;
    PyObject *interventions; /* borrowed */
} appended;

/* Rows of the interventions: the tokens that are added, and the pending tokens before them. */
static size_t appended_rows(const mom_decoder *d, const appended *in) {
    size_t rows = 0;
    for (size_t b = 0; b < in->B; b++) {
        const size_t length = in->lengths ? (size_t)in->lengths[b] : in->T;
        rows += length + (length && b < d->batch.B && d->batch.sequences[b].pending >= 0);
    }
    return rows;
}

static PyObject *run_append(decoder_object *self, const appended *in) {
    mom_held_interventions *held;
    if (mom_hold_interventions(in->interventions, self->decoder.gpt, NULL, appended_rows(&self->decoder, in), &held) < 0)
        return NULL;
    const mom_exec exec = mom_network_exec(self->network);
    mom_error err;
    mom_status status;
    self->decoder.interventions = mom_interventions_of(held);
    MOM_WITHOUT_GIL(status = mom_decoder_append(&self->decoder, &exec, in->tokens, in->lengths, in->B, in->T, &err));
    forget_interventions(self, held);
    return status == MOM_OK ? copy_logits(self) : mom_raise((PyObject *)Py_TYPE(self), &err);
}

static PyObject *append(decoder_object *self, const appended *in) {
    if (check_tokens(in->tokens, in->lengths, in->B, in->T, self->decoder.gpt->config.V) < 0 ||
        mom_network_enter(self->network) < 0)
        return NULL;
    PyObject *out = run_append(self, in);
    mom_network_leave(self->network);
    return out;
}

static PyObject *decoder_prefill(decoder_object *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"tokens", "lengths", "interventions", NULL};
    PyObject *tokens_o, *lengths_o = Py_None, *interventions = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|OO:prefill", names, &tokens_o, &lengths_o, &interventions))
        return NULL;
    const npy_intp any[2] = {-1, -1};
    PyArrayObject *tokens = mom_check_array(tokens_o, "tokens", NPY_INT32, 2, any, 0), *lengths = NULL; /* borrowed */
    if (!tokens)
        return NULL;
    if (lengths_o != Py_None) {
        lengths = mom_check_array(lengths_o, "lengths", NPY_INT32, 1, PyArray_DIMS(tokens), 0);
        if (!lengths)
            return NULL;
    }
    if (PyArray_SIZE(tokens) > INT32_MAX) {
        PyErr_Format(PyExc_ValueError, "tokens: %zd tokens in one batch are more than %d", PyArray_SIZE(tokens), INT32_MAX);
        return NULL;
    }
    const appended in = {PyArray_DATA(tokens), lengths ? PyArray_DATA(lengths) : NULL, (size_t)PyArray_DIM(tokens, 0),
                         (size_t)PyArray_DIM(tokens, 1), interventions};
    return append(self, &in);
}

static PyObject *decoder_step(decoder_object *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"tokens", "interventions", NULL};
    PyObject *tokens_o, *interventions = Py_None;
    const npy_intp any[1] = {-1};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O|O:step", names, &tokens_o, &interventions))
        return NULL;
    PyArrayObject *tokens = mom_check_array(tokens_o, "tokens", NPY_INT32, 1, any, 0); /* borrowed */
    if (!tokens)
        return NULL;
    const appended in = {PyArray_DATA(tokens), NULL, (size_t)PyArray_DIM(tokens, 0), 1, interventions};
    return append(self, &in);
}

/* The first `made` rows of (n, B) tokens. */
static PyObject *first_rows(PyObject *out, size_t made) {
    if ((npy_intp)made == PyArray_DIM((PyArrayObject *)out, 0))
        return out;
    PyObject *rows = PySequence_GetSlice(out, 0, (Py_ssize_t)made); /* new reference */
    Py_DECREF(out);
    return rows;
}

/* Interventions have a row for each pending token of a sequence that is not finished. */
static int hold_for_pending(const decoder_object *self, PyObject *interventions, Py_ssize_t n, const uint8_t *finished,
                            mom_held_interventions **held) {
    const mom_decoder_batch *batch = &self->decoder.batch;
    size_t rows = 0;
    for (size_t b = 0; b < batch->B; b++)
        rows += !finished[b] && batch->sequences[b].pending >= 0;
    if (interventions != Py_None && n != 1) {
        PyErr_SetString(PyExc_ValueError, "interventions: are of one token, so n must be 1");
        return -1;
    }
    return mom_hold_interventions(interventions, self->decoder.gpt, NULL, rows, held);
}

static PyObject *decoder_generate(decoder_object *self, PyObject *args) {
    Py_ssize_t n, top_k, choices = 0;
    unsigned long long seed, step;
    int stop_token;
    PyObject *finished_o, *banned_o = Py_None, *interventions = Py_None;
    mom_sampling s = {0};
    if (!PyArg_ParseTuple(args, "nfnfKKiO|nOO:generate", &n, &s.temperature, &top_k, &s.top_p, &seed, &step, &stop_token,
                          &finished_o, &choices, &banned_o, &interventions))
        return NULL;
    const npy_intp rows[1] = {(npy_intp)self->decoder.batch.B};
    PyArrayObject *finished = mom_check_array(finished_o, "finished", NPY_UINT8, 1, rows, 1); /* borrowed */
    if (!finished)
        return NULL;
    if (banned_o != Py_None) {
        const npy_intp any[1] = {-1};
        PyArrayObject *banned = mom_check_array(banned_o, "banned", NPY_INT32, 1, any, 0); /* borrowed */
        if (!banned)
            return NULL;
        s.banned = PyArray_DATA(banned);
        s.num_banned = (size_t)PyArray_DIM(banned, 0);
    }
    if (n < 0 || top_k < 0 || choices < 0 || !(s.temperature >= 0.0f) || !(s.top_p > 0.0f && s.top_p <= 1.0f) ||
        (stop_token >= 0 && (size_t)stop_token >= self->decoder.gpt->config.V)) {
        PyErr_SetString(PyExc_ValueError, "n, temperature, top_k, top_p, stop_token, choices: out of range");
        return NULL;
    }
    s.top_k = (size_t)top_k;
    s.choices = (size_t)choices;
    s.seed = seed;
    s.step = step;
    const npy_intp dims[2] = {n, rows[0]};
    PyObject *out = PyArray_SimpleNew(2, dims, NPY_INT32); /* new reference */
    if (!out || mom_network_enter(self->network) < 0) {
        Py_XDECREF(out);
        return NULL;
    }
    if ((npy_intp)self->decoder.batch.B != rows[0]) { /* another thread has changed the batch */
        mom_network_leave(self->network);
        Py_DECREF(out);
        PyErr_SetString(PyExc_RuntimeError, "generate: the sequences were changed by another thread");
        return NULL;
    }
    mom_held_interventions *held;
    if (hold_for_pending(self, interventions, n, PyArray_DATA(finished), &held) < 0) {
        mom_network_leave(self->network);
        Py_DECREF(out);
        return NULL;
    }
    const mom_exec exec = mom_network_exec(self->network);
    int32_t *data = PyArray_DATA((PyArrayObject *)out);
    uint8_t *flags = PyArray_DATA(finished);
    size_t made = 0;
    mom_error err;
    mom_status status;
    self->decoder.interventions = mom_interventions_of(held);
    MOM_WITHOUT_GIL(status = mom_decoder_generate(&self->decoder, &exec, data, flags, &made, &s, stop_token, (size_t)n, &err));
    forget_interventions(self, held);
    mom_network_leave(self->network);
    if (status == MOM_OK)
        return first_rows(out, made);
    Py_DECREF(out);
    return mom_raise((PyObject *)Py_TYPE(self), &err);
}

/* ------------------------------------------------------------------ sequences */

static PyObject *decoder_reorder(decoder_object *self, PyObject *rows_o) {
    const npy_intp any[1] = {-1};
    PyArrayObject *rows = mom_check_array(rows_o, "rows", NPY_INT32, 1, any, 0); /* borrowed */
    if (!rows || mom_network_enter(self->network) < 0)
        return NULL;
    const int32_t *data = PyArray_DATA(rows);
    const size_t count = (size_t)PyArray_DIM(rows, 0);
    mom_error err;
    mom_status status;
    MOM_WITHOUT_GIL(status = mom_decoder_reorder(&self->decoder, data, count, &err));
    mom_network_leave(self->network);
    return status == MOM_OK ? Py_NewRef(Py_None) : mom_raise((PyObject *)Py_TYPE(self), &err);
}

static PyObject *decoder_reserve(decoder_object *self, PyObject *arg) {
    const Py_ssize_t capacity = PyNumber_AsSsize_t(arg, PyExc_ValueError);
    if (capacity == -1 && PyErr_Occurred())
        return NULL;
    if (capacity < 0)
        return PyErr_Format(PyExc_ValueError, "capacity: %zd is negative", capacity);
    if (mom_network_enter(self->network) < 0)
        return NULL;
    mom_error err;
    const mom_status status = mom_decoder_reserve(&self->decoder, (size_t)capacity, &err);
    mom_network_leave(self->network);
    return status == MOM_OK ? Py_NewRef(Py_None) : mom_raise((PyObject *)Py_TYPE(self), &err);
}

static PyObject *decoder_clear(decoder_object *self, PyObject *Py_UNUSED(ignored)) {
    if (mom_network_enter(self->network) < 0)
        return NULL;
    mom_decoder_clear(&self->decoder);
    mom_network_leave(self->network);
    Py_RETURN_NONE;
}

/* As many columns of choices as the configuration keeps, or more if a sequence has more. */
static PyObject *copy_kept(const mom_pool *pool, size_t B, const mom_decoder_route *r) {
    const size_t S = pool->S;
    size_t K = pool->K;
    for (size_t i = 0; i < B * S; i++)
        if (r->index[i] != MOM_NONE && i % S >= K)
            K = i % S + 1;
    int16_t *index = PyMem_Malloc(B * K * sizeof *index);
    float *kept = PyMem_Malloc(B * K * sizeof *kept);
    for (size_t i = 0; index && kept && i < B * K; i++) {
        index[i] = r->index[i / K * S + i % K];
        kept[i] = r->kept[i / K * S + i % K];
    }
    PyObject *out = index && kept ? mom_copy_route(pool, B, K, r->scores, index, kept) : PyErr_NoMemory();
    PyMem_Free(index);
    PyMem_Free(kept);
    return out;
}

static PyObject *copy_route(const mom_decoder *d, Py_ssize_t place, Py_ssize_t round, int half) {
    if (!d->batch.B) {
        PyErr_SetString(PyExc_RuntimeError, "route: there are no sequences yet");
        return NULL;
    }
    const mom_pool *pool = mom_find_pool(&d->gpt->params, place, round, half);
    if (!pool)
        return NULL;
    if (!pool->routed)
        Py_RETURN_NONE;
    const mom_decoder_route *r = &d->batch.routes[place][2 * (size_t)round + (size_t)half];
    return copy_kept(pool, d->batch.B, r);
}

static PyObject *decoder_route(decoder_object *self, PyObject *args) {
    Py_ssize_t place, round;
    int half;
    if (!PyArg_ParseTuple(args, "nni:route", &place, &round, &half) || mom_network_enter(self->network) < 0)
        return NULL;
    PyObject *out = copy_route(&self->decoder, place, round, half);
    mom_network_leave(self->network);
    return out;
}

static PyObject *decoder_get_logits(decoder_object *self, void *Py_UNUSED(closure)) {
    if (mom_network_enter(self->network) < 0)
        return NULL;
    PyObject *out = copy_logits(self);
    mom_network_leave(self->network);
    return out;
}

static PyObject *decoder_get_lengths(decoder_object *self, void *Py_UNUSED(closure)) {
    if (mom_network_enter(self->network) < 0)
        return NULL;
    const mom_decoder_batch *batch = &self->decoder.batch;
    const npy_intp dims[1] = {(npy_intp)batch->B};
    PyObject *out = PyArray_SimpleNew(1, dims, NPY_INT32); /* new reference */
    for (size_t b = 0; out && b < batch->B; b++)
        ((int32_t *)PyArray_DATA((PyArrayObject *)out))[b] = (int32_t)mom_sequence_length(&batch->sequences[b]);
    mom_network_leave(self->network);
    return out;
}

static PyObject *decoder_get_pending(decoder_object *self, void *Py_UNUSED(closure)) {
    if (mom_network_enter(self->network) < 0)
        return NULL;
    const mom_decoder_batch *batch = &self->decoder.batch;
    const npy_intp dims[1] = {(npy_intp)batch->B};
    PyObject *out = PyArray_SimpleNew(1, dims, NPY_INT32); /* new reference */
    for (size_t b = 0; out && b < batch->B; b++)
        ((int32_t *)PyArray_DATA((PyArrayObject *)out))[b] = batch->sequences[b].pending;
    mom_network_leave(self->network);
    return out;
}

static PyObject *decoder_get_bytes(decoder_object *self, void *Py_UNUSED(closure)) {
    if (mom_network_enter(self->network) < 0)
        return NULL;
    const size_t bytes = mom_decoder_bytes(&self->decoder);
    mom_network_leave(self->network);
    return PyLong_FromSize_t(bytes);
}

static PyObject *decoder_get_weights(decoder_object *self, void *Py_UNUSED(closure)) {
    return PyUnicode_FromString(format_names[self->decoder.format]);
}

static PyMethodDef decoder_methods[] = {
    {"prefill", (PyCFunction)(void (*)(void))decoder_prefill, METH_VARARGS | METH_KEYWORDS,
     "prefill($self, tokens, lengths=None, interventions=None)\n--\n\nAppend (B, T) tokens, of each row the first lengths; logits (B, V)."},
    {"step", (PyCFunction)(void (*)(void))decoder_step, METH_VARARGS | METH_KEYWORDS,
     "step($self, tokens, interventions=None)\n--\n\nAppend one token (B,) per sequence; logits (B, V)."},
    {"generate", (PyCFunction)decoder_generate, METH_VARARGS,
     "generate($self, n, temperature, top_k, top_p, seed, step, stop_token, finished, choices=0, banned=None, "
     "interventions=None, /)\n--\n\n"
     "Choose and append up to n tokens per sequence, of ids below choices (0: all), none of banned; (made, B)."},
    {"reorder", (PyCFunction)decoder_reorder, METH_O,
     "reorder($self, rows, /)\n--\n\nSequence i becomes what sequence rows[i] was."},
    {"reserve", (PyCFunction)decoder_reserve, METH_O, "reserve($self, capacity, /)\n--\n\nRoom for so many tokens."},
    {"clear", (PyCFunction)decoder_clear, METH_NOARGS, "clear($self, /)\n--\n\nForget all sequences."},
    {"route", (PyCFunction)decoder_route, METH_VARARGS,
     "route($self, place, round, half, /)\n--\n\nRouting of each sequence's last token, None without a router."},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef decoder_getset[] = {
    {"logits", (getter)decoder_get_logits, NULL, "float32 (B, V): after each sequence's last cached token", NULL},
    {"lengths", (getter)decoder_get_lengths, NULL, "int32 (B,): tokens of each sequence", NULL},
    {"pending", (getter)decoder_get_pending, NULL, "int32 (B,): a chosen token that the next call reads, or -1", NULL},
    {"bytes", (getter)decoder_get_bytes, NULL, "bytes of copied weights, cache and workspace", NULL},
    {"weights", (getter)decoder_get_weights, NULL, "number format of the weights", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot decoder_slots[] = {
    {Py_tp_new, decoder_new},
    {Py_tp_dealloc, decoder_dealloc},
    {Py_tp_methods, decoder_methods},
    {Py_tp_getset, decoder_getset},
    {Py_tp_doc, "Decoder(network, weights='float32')\n--\n\nSequences that a network continues; see mom.Decoder."},
    {0, NULL}};

PyType_Spec mom_decoder_spec = {.name = "mom._core.Decoder",
                                   .basicsize = sizeof(decoder_object),
                                   .flags = Py_TPFLAGS_DEFAULT,
                                   .slots = decoder_slots};
