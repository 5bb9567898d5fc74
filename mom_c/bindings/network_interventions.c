#include "bindings/network_interventions.h"

#include <math.h>
#include <string.h>

#include "bindings/convert.h"
#include "bindings/errors.h"
#include "bindings/routes.h"
#include "ops/forced_choices.h"

struct mom_held_interventions {
    mom_interventions interventions;
    mom_arena arena;  /* its tables */
    PyObject *arrays; /* list */
};

typedef struct {
    mom_held_interventions *held;
    const mom_gpt *gpt;
    size_t N, B, T;
} reader;

/* Room for `count` items in the tables. NULL with MemoryError set on failure. */
static void *new_table(const reader *r, size_t count, size_t size) {
    mom_error err;
    void *table = mom_arena_alloc(&r->held->arena, count, size, &err);
    if (!table)
        PyErr_SetString(PyExc_MemoryError, err.text);
    else
        memset(table, 0, count * size);
    return table;
}

/* The data of an array, which is kept alive; NULL for None if that is allowed. Returns -1 with an exception set. */
static int hold(const reader *r, PyObject *object, const char *name, int type, int ndim, const npy_intp *shape, int writable,
                int optional, void **data) {
    *data = NULL;
    if (optional && object == Py_None)
        return 0;
    PyArrayObject *array = mom_check_array(object, name, type, ndim, shape, writable); /* borrowed */
    if (!array || PyList_Append(r->held->arrays, object) < 0)
        return -1;
    *data = PyArray_DATA(array);
    return 0;
}

/* The items of a list as a tuple that is kept alive, since the caller can change the list while an item is converted. The
 * result is borrowed; NULL with an exception set on failure. */
static PyObject *items_of(const reader *r, PyObject *list) {
    PyObject *items = PyList_AsTuple(list);
    const int kept = items && PyList_Append(r->held->arrays, items) == 0;
    Py_XDECREF(items);
    return kept ? items : NULL;
}

/* Whether an object is a tuple. If not, sets TypeError. */
static int is_tuple(PyObject *object, const char *name) {
    if (PyTuple_Check(object))
        return 1;
    PyErr_Format(PyExc_TypeError, "%s: expected tuple, got %s", name, Py_TYPE(object)->tp_name);
    return 0;
}

/* ---- routes */

static int check_bias(const float *bias, size_t rows, size_t S) {
    for (size_t t = 0; t < rows; t++) {
        size_t allowed = 0;
        for (size_t s = 0; s < S; s++) {
            const float value = bias[t * S + s];
            if (isnan(value) || value == INFINITY) {
                PyErr_Format(PyExc_ValueError, "routes: the bias of choice %zu is neither finite nor -inf", s);
                return -1;
            }
            allowed += value != -INFINITY;
        }
        if (!allowed) {
            PyErr_Format(PyExc_ValueError, "routes: all choices of token %zu are forbidden", t);
            return -1;
        }
    }
    return 0;
}

/* Number of rows of a bias: N, or 1 for all tokens. */
static size_t bias_rows(PyObject *bias, size_t N) {
    return PyArray_Check(bias) && PyArray_NDIM((PyArrayObject *)bias) && PyArray_DIM((PyArrayObject *)bias, 0) == 1 ? 1 : N;
}

static int read_route(const reader *r, PyObject *item, mom_route_change **routes) {
    Py_ssize_t place, round;
    int half;
    PyObject *forced, *bias;
    void *forced_data, *bias_data;
    if (!is_tuple(item, "routes") || !PyArg_ParseTuple(item, "nniOO:routes", &place, &round, &half, &forced, &bias))
        return -1;
    const mom_params *params = &r->gpt->params;
    if (place < 0 || (size_t)place >= params->num_places || half < 0 || half > 1 || round < 0 ||
        (size_t)round >= params->places[place].rounds || !mom_place_pool(&params->places[place], half)->routed) {
        PyErr_Format(PyExc_ValueError, "routes: no router at place %zd, round %zd, half %d", place, round, half);
        return -1;
    }
    const mom_pool *pool = mom_place_pool(&params->places[place], half);
    const size_t own = r->held->interventions.choices[half], K = own ? own : pool->K, rows = bias_rows(bias, r->N);
    const npy_intp choices[2] = {(npy_intp)r->N, (npy_intp)K}, outputs[2] = {(npy_intp)rows, (npy_intp)pool->S};
    if (hold(r, forced, "routes: forced choices", NPY_INT16, 2, choices, 0, 1, &forced_data) < 0 ||
        hold(r, bias, "routes: bias", NPY_FLOAT32, 2, outputs, 0, 1, &bias_data) < 0)
        return -1;
    if (forced_data && r->gpt->config.all_paths) {
        PyErr_SetString(PyExc_ValueError, "routes: choices cannot be forced where every token uses all modules");
        return -1;
    }
    const mom_topk_spec topk = {.N = r->N, .S = pool->S, .K = K};
    if ((forced_data && !mom_check_forced("routes", forced_data, &topk, pool->M)) ||
        (bias_data && check_bias(bias_data, rows, pool->S) < 0))
        return -1;
    routes[place][2 * round + half] = (mom_route_change){forced_data, bias_data, rows == 1 ? 0 : pool->S};
    return 0;
}

static int read_routes(const reader *r, PyObject *items) {
    const mom_params *params = &r->gpt->params;
    if (!PyTuple_GET_SIZE(items))
        return 0;
    mom_route_change **routes = new_table(r, params->num_places, sizeof *routes);
    for (size_t i = 0; routes && i < params->num_places; i++)
        if (!(routes[i] = new_table(r, 2 * params->places[i].rounds, sizeof **routes)))
            return -1;
    for (Py_ssize_t i = 0; routes && i < PyTuple_GET_SIZE(items); i++)
        if (read_route(r, PyTuple_GET_ITEM(items, i), routes) < 0)
            return -1;
    r->held->interventions.routes = (const mom_route_change *const *)routes;
    return routes ? 0 : -1;
}

/* ---- sites */

/* Whether the network has such a site. */
static int is_site(const mom_gpt *gpt, const mom_site *site) {
    const mom_params *params = &gpt->params;
    const int of_half = site->kind == MOM_SITE_INPUT || site->kind == MOM_SITE_STATE || site->kind == MOM_SITE_MODULE ||
                        site->kind == MOM_SITE_OUTPUT;
    if (!of_half)
        return site->kind < MOM_SITE_KINDS && !site->place && !site->round && !site->half && !site->module;
    if (site->place >= params->num_places || site->round >= params->places[site->place].rounds || site->half > 1)
        return 0;
    const mom_pool *pool = mom_place_pool(&params->places[site->place], site->half);
    if (site->kind == MOM_SITE_STATE && !mom_pool_has_state(pool))
        return 0;
    return site->kind == MOM_SITE_MODULE ? site->module < pool->M : !site->module;
}

/* Makes a site of its numbers. Returns its width, or 0 with ValueError set. */
static size_t read_site(const mom_gpt *gpt, const int numbers[5], mom_site *site) {
    for (int i = 0; i < 5; i++)
        if (numbers[i] < 0) {
            PyErr_SetString(PyExc_ValueError, "site: a number is negative");
            return 0;
        }
    *site = (mom_site){(mom_site_kind)numbers[0], (size_t)numbers[1], (size_t)numbers[2], numbers[3], (size_t)numbers[4]};
    if (is_site(gpt, site))
        return site->kind == MOM_SITE_STATE ? gpt->config.R : gpt->config.C;
    PyErr_Format(PyExc_ValueError, "site: kind %d, place %d, round %d, half %d, module %d is not in this network", numbers[0],
                 numbers[1], numbers[2], numbers[3], numbers[4]);
    return 0;
}

static int read_patch(const reader *r, PyObject *item, mom_patch *patch) {
    int n[5];
    PyObject *value_row, *values;
    void *rows, *data;
    if (!is_tuple(item, "patches") ||
        !PyArg_ParseTuple(item, "iiiiiOOf:patches", &n[0], &n[1], &n[2], &n[3], &n[4], &value_row, &values, &patch->factor))
        return -1;
    const size_t width = read_site(r->gpt, n, &patch->site);
    const npy_intp N[1] = {(npy_intp)r->N}, shape[2] = {-1, (npy_intp)width};
    if (!width || hold(r, value_row, "patches: value_row", NPY_INT32, 1, N, 0, 0, &rows) < 0 ||
        hold(r, values, "patches: values", NPY_FLOAT32, 2, shape, 0, 1, &data) < 0)
        return -1;
    const npy_intp count = data ? PyArray_DIM((PyArrayObject *)values, 0) : 1;
    patch->value_row = rows;
    patch->values = data;
    for (size_t t = 0; t < r->N; t++)
        if (patch->value_row[t] < -1 || patch->value_row[t] >= count) {
            PyErr_Format(PyExc_ValueError, "patches: value_row %d, expected -1 to %zd", patch->value_row[t], count - 1);
            return -1;
        }
    if (isfinite(patch->factor))
        return 0;
    PyErr_SetString(PyExc_ValueError, "patches: the factor is not finite");
    return -1;
}

static int read_patches(const reader *r, PyObject *items, PyObject *touched) {
    mom_interventions *in = &r->held->interventions;
    const npy_intp count[1] = {PyTuple_GET_SIZE(items)};
    void *counters;
    mom_patch *patches = new_table(r, (size_t)count[0], sizeof *patches);
    if (!patches || hold(r, touched, "touched", NPY_INT64, 1, count, 1, 0, &counters) < 0)
        return -1;
    for (npy_intp i = 0; i < count[0]; i++) {
        if (read_patch(r, PyTuple_GET_ITEM(items, i), &patches[i]) < 0)
            return -1;
        patches[i].touched = (int64_t *)counters + i;
    }
    in->patches = patches;
    in->patch_count = (size_t)count[0];
    return 0;
}

static int read_capture(const reader *r, PyObject *item, mom_capture *capture) {
    int n[5];
    PyObject *values, *gradients;
    void *data, *gradient_data;
    if (!is_tuple(item, "captures") ||
        !PyArg_ParseTuple(item, "iiiiiOO:captures", &n[0], &n[1], &n[2], &n[3], &n[4], &values, &gradients))
        return -1;
    const size_t width = read_site(r->gpt, n, &capture->site);
    const npy_intp shape[2] = {(npy_intp)r->N, (npy_intp)width};
    if (!width || hold(r, values, "captures: values", NPY_FLOAT32, 2, shape, 1, 0, &data) < 0 ||
        hold(r, gradients, "captures: gradients", NPY_FLOAT32, 2, shape, 1, 1, &gradient_data) < 0)
        return -1;
    capture->values = data;
    capture->gradients = gradient_data;
    return 0;
}

static int read_captures(const reader *r, PyObject *items) {
    mom_interventions *in = &r->held->interventions;
    const Py_ssize_t count = PyTuple_GET_SIZE(items);
    mom_capture *captures = new_table(r, (size_t)count, sizeof *captures);
    if (!captures)
        return -1;
    for (Py_ssize_t i = 0; i < count; i++)
        if (read_capture(r, PyTuple_GET_ITEM(items, i), &captures[i]) < 0)
            return -1;
    in->captures = captures;
    in->capture_count = (size_t)count;
    return 0;
}

/* (place, round, rows, out), where the sequences have T tokens, the longest of them */
static int read_attention(const reader *r, PyObject *object) {
    const mom_params *params = &r->gpt->params;
    Py_ssize_t place, round;
    PyObject *rows_o, *out_o;
    void *rows, *out;
    if (object == Py_None)
        return 0;
    if (!is_tuple(object, "attention") || !PyArg_ParseTuple(object, "nnOO:attention", &place, &round, &rows_o, &out_o))
        return -1;
    if (place < 0 || (size_t)place >= params->num_places || round < 0 || (size_t)round >= params->places[place].rounds) {
        PyErr_Format(PyExc_ValueError, "attention: no place %zd with a round %zd", place, round);
        return -1;
    }
    const npy_intp any[1] = {-1};
    if (hold(r, rows_o, "attention: rows", NPY_INT32, 1, any, 0, 0, &rows) < 0)
        return -1;
    const npy_intp count = PyArray_DIM((PyArrayObject *)rows_o, 0), T = (npy_intp)r->T, H = (npy_intp)r->gpt->config.H;
    const npy_intp shape[4] = {count, H, T, T};
    for (npy_intp i = 0; i < count; i++)
        if (((const int32_t *)rows)[i] < 0 || (size_t)((const int32_t *)rows)[i] >= r->B) {
            PyErr_Format(PyExc_ValueError, "attention: row %d, the batch has %zu", ((const int32_t *)rows)[i], r->B);
            return -1;
        }
    mom_attention_capture *capture = new_table(r, 1, sizeof *capture);
    if (!capture || hold(r, out_o, "attention: out", NPY_FLOAT32, 4, shape, 1, 0, &out) < 0)
        return -1;
    *capture = (mom_attention_capture){(size_t)place, (size_t)round, rows, (size_t)count, out};
    r->held->interventions.attention = capture;
    return 0;
}

/* ---- routes that a decoder writes */

static int read_record(const reader *r, PyObject *item, mom_route_record **records) {
    const mom_params *params = &r->gpt->params;
    Py_ssize_t place, round;
    int half;
    PyObject *index_o, *kept_o, *scores_o;
    void *index, *kept, *scores;
    if (!is_tuple(item, "records") ||
        !PyArg_ParseTuple(item, "nniOOO:records", &place, &round, &half, &index_o, &kept_o, &scores_o))
        return -1;
    const mom_pool *pool = half < 0 || half > 1 ? NULL : mom_find_pool(params, place, round, half);
    if (!pool || !pool->routed) {
        PyErr_Clear();
        PyErr_Format(PyExc_ValueError, "records: no router at place %zd, round %zd, half %d", place, round, half);
        return -1;
    }
    const size_t own = r->held->interventions.choices[half], K = own ? own : pool->K;
    const npy_intp choices[2] = {(npy_intp)r->N, (npy_intp)K}, outputs[2] = {(npy_intp)r->N, (npy_intp)pool->S};
    if (hold(r, index_o, "records: index", NPY_INT16, 2, choices, 1, 0, &index) < 0 ||
        hold(r, kept_o, "records: kept", NPY_FLOAT32, 2, choices, 1, 0, &kept) < 0 ||
        hold(r, scores_o, "records: scores", NPY_FLOAT32, 2, outputs, 1, 0, &scores) < 0)
        return -1;
    records[place][2 * round + half] = (mom_route_record){index, kept, scores};
    return 0;
}

static int read_records(const reader *r, PyObject *items) {
    const mom_params *params = &r->gpt->params;
    if (!PyTuple_GET_SIZE(items))
        return 0;
    mom_route_record **records = new_table(r, params->num_places, sizeof *records);
    for (size_t i = 0; records && i < params->num_places; i++)
        if (!(records[i] = new_table(r, 2 * params->places[i].rounds, sizeof **records)))
            return -1;
    for (Py_ssize_t i = 0; records && i < PyTuple_GET_SIZE(items); i++)
        if (read_record(r, PyTuple_GET_ITEM(items, i), records) < 0)
            return -1;
    r->held->interventions.records = (const mom_route_record *const *)records;
    return records ? 0 : -1;
}

/* ---- all of them */

static int read_all(const reader *r, PyObject *tuple) {
    mom_interventions *in = &r->held->interventions;
    const mom_config *c = &r->gpt->config;
    Py_ssize_t attn, ffn;
    PyObject *routes, *patches, *captures, *touched, *attention, *losses, *records;
    const npy_intp N[1] = {(npy_intp)r->N};
    void *token_losses;
    if (!PyArg_ParseTuple(tuple, "(nn)O!O!O!OOOO!:interventions", &attn, &ffn, &PyList_Type, &routes, &PyList_Type, &patches,
                          &PyList_Type, &captures, &touched, &attention, &losses, &PyList_Type, &records) ||
        !(routes = items_of(r, routes)) || !(patches = items_of(r, patches)) || !(captures = items_of(r, captures)) ||
        !(records = items_of(r, records)))
        return -1;
    if (attn < 0 || (size_t)attn > c->choices_attn || ffn < 0 || (size_t)ffn > c->choices_ffn) {
        PyErr_Format(PyExc_ValueError, "choices: (%zd, %zd), expected 0 to %zu and 0 to %zu", attn, ffn, c->choices_attn,
                     c->choices_ffn);
        return -1;
    }
    in->choices[0] = (size_t)attn;
    in->choices[1] = (size_t)ffn;
    if (read_routes(r, routes) < 0 || read_patches(r, patches, touched) < 0 || read_captures(r, captures) < 0 ||
        read_attention(r, attention) < 0 || read_records(r, records) < 0 ||
        hold(r, losses, "token_losses", NPY_FLOAT32, 1, N, 1, 1, &token_losses) < 0)
        return -1;
    in->token_losses = token_losses;
    return 0;
}

int mom_hold_interventions(PyObject *object, const mom_gpt *gpt, const mom_batch *batch, size_t N,
                           mom_held_interventions **held) {
    *held = NULL;
    if (object == Py_None)
        return 0;
    if (!is_tuple(object, "interventions"))
        return -1;
    mom_held_interventions *own = PyMem_Calloc(1, sizeof *own);
    if (!own) {
        PyErr_NoMemory();
        return -1;
    }
    mom_arena_init(&own->arena, "interventions");
    own->arrays = PyList_New(0);
    const reader r = {own, gpt, N, batch ? batch->B : 0, batch ? batch->T : 0};
    if (!own->arrays || read_all(&r, object) < 0) {
        mom_release_interventions(own);
        return -1;
    }
    *held = own;
    return 0;
}

void mom_release_interventions(mom_held_interventions *held) {
    if (!held)
        return;
    Py_XDECREF(held->arrays);
    mom_arena_free(&held->arena);
    PyMem_Free(held);
}

const mom_interventions *mom_interventions_of(const mom_held_interventions *held) {
    return held ? &held->interventions : NULL;
}
