#include "bindings/network_config.h"

#include <stddef.h>
#include <string.h>

typedef struct {
    const char *key;
    enum { SIZE, FLAG, CHOICE, NUMBER } kind; /* in the struct: size_t, int, an enumeration, float */
    size_t offset;                            /* in mom_config */
    size_t choices;                           /* CHOICE: values are below this */
} config_field;

#define FIELD(key, kind, member) {key, kind, offsetof(mom_config, member), 0}
#define FIELD_OF(key, member, choices) {key, CHOICE, offsetof(mom_config, member), choices}

static const config_field fields[] = {
    FIELD("V", SIZE, V),
    FIELD("P", SIZE, P),
    FIELD("C", SIZE, C),
    FIELD("H", SIZE, H),
    FIELD("F", SIZE, F),
    FIELD("bottom", SIZE, bottom),
    FIELD("chunks", SIZE, chunks),
    FIELD("top", SIZE, top),
    FIELD("anchor_between", FLAG, anchor_between),
    FIELD("vanilla", FLAG, vanilla),
    FIELD("num_attn", SIZE, num_attn),
    FIELD("num_ffn", SIZE, num_ffn),
    FIELD("rounds", SIZE, rounds),
    FIELD("choices_attn", SIZE, choices_attn),
    FIELD("choices_ffn", SIZE, choices_ffn),
    FIELD("top_k", SIZE, top_k),
    FIELD_OF("router_kind", router_kind, MOM_ROUTER_KINDS),
    FIELD("router_softmax", FLAG, router_softmax),
    FIELD("router_random", FLAG, router_random),
    FIELD("R", SIZE, R),
    FIELD("temperature", NUMBER, temperature),
    FIELD("renormalise", FLAG, renormalise),
    FIELD("jitter", NUMBER, jitter),
    FIELD_OF("router_state", router_state, MOM_STATES),
    FIELD("router_normed", FLAG, router_normed),
    FIELD("router_embedded", FLAG, router_embedded),
    FIELD("router_own_maps", FLAG, router_own_maps),
    FIELD("router_frozen", FLAG, router_frozen),
    FIELD("bias_rate", NUMBER, bias_rate),
    FIELD("final_skip", FLAG, final_skip),
    FIELD("route_single", FLAG, route_single),
    FIELD("share_attn", FLAG, share_attn),
    FIELD("share_ffn", FLAG, share_ffn),
    FIELD("round_pdrop", NUMBER, round_pdrop),
    FIELD("use_ste", FLAG, use_ste),
    FIELD("weighted_qkv", FLAG, weighted_qkv),
    FIELD("all_paths", FLAG, all_paths),
    FIELD("balance_enabled", FLAG, balance_enabled),
    FIELD("balance_reference", FLAG, balance_reference),
    FIELD("balance_depthwise", FLAG, balance_depthwise),
    FIELD("balance_step_counts", FLAG, balance_step_counts),
    FIELD("balance_used", FLAG, balance_used),
    FIELD("z_loss", FLAG, z_loss),
    FIELD("path_loss", FLAG, path_loss),
    FIELD("route_loss", FLAG, route_loss),
    FIELD("coupling_loss", FLAG, coupling_loss),
    FIELD_OF("masked_query_reference", masked_query, MOM_MASKED_QUERY_REFERENCE + 1),
    FIELD("embd_pdrop", NUMBER, embd_pdrop),
    FIELD("attn_pdrop", NUMBER, attn_pdrop),
    FIELD("resid_pdrop", NUMBER, resid_pdrop),
    FIELD("ln_eps", NUMBER, ln_eps),
    FIELD("scale_attention", FLAG, scale_attention),
    FIELD("init_range", NUMBER, init_range),
    FIELD("anchor_proj_range", NUMBER, anchor_proj_range),
    FIELD_OF("bf16", dtype, MOM_BF16 + 1),
    FIELD("num_labels", SIZE, num_labels),
};
#define NUM_FIELDS (sizeof fields / sizeof *fields)

_Static_assert(sizeof(mom_router_kind) == sizeof(int) && sizeof(mom_masked_query) == sizeof(int) &&
                   sizeof(mom_dtype) == sizeof(int) && sizeof(mom_router_state) == sizeof(int), "read_field stores every choice as an int");

static int read_size(PyObject *value, const char *key, size_t *out) {
    const Py_ssize_t size = PyNumber_AsSsize_t(value, PyExc_ValueError);
    if (size == -1 && PyErr_Occurred())
        return -1;
    if (size < 0) {
        PyErr_Format(PyExc_ValueError, "config: '%s' is negative", key);
        return -1;
    }
    *out = (size_t)size;
    return 0;
}

static int read_field(PyObject *value, const config_field *field, mom_config *config) {
    void *out = (char *)config + field->offset;
    size_t choice;
    double number;
    switch (field->kind) {
    case SIZE:
        return read_size(value, field->key, out);
    case FLAG:
        *(int *)out = PyObject_IsTrue(value);
        return *(int *)out < 0 ? -1 : 0;
    case CHOICE:
        if (read_size(value, field->key, &choice) < 0)
            return -1;
        if (choice >= field->choices) {
            PyErr_Format(PyExc_ValueError, "config: '%s' is %zu, expected less than %zu", field->key, choice, field->choices);
            return -1;
        }
        *(int *)out = (int)choice;
        return 0;
    case NUMBER:
        number = PyFloat_AsDouble(value);
        *(float *)out = (float)number;
        return number == -1.0 && PyErr_Occurred() ? -1 : 0;
    }
    return -1;
}

int mom_read_config(PyObject *dict, mom_config *config) {
    memset(config, 0, sizeof *config);
    for (size_t i = 0; i < NUM_FIELDS; i++) {
        /* A new reference: reading a value may call Python code that changes the dict. */
        PyObject *value = PyMapping_GetItemString(dict, fields[i].key);
        if (!value) {
            if (PyErr_ExceptionMatches(PyExc_KeyError))
                PyErr_Format(PyExc_TypeError, "config: key '%s' is missing", fields[i].key);
            return -1;
        }
        const int failed = read_field(value, &fields[i], config);
        Py_DECREF(value);
        if (failed)
            return -1;
    }
    if ((size_t)PyDict_GET_SIZE(dict) != NUM_FIELDS) {
        PyErr_Format(PyExc_TypeError, "config: %zd keys, expected the %zu of config_fields()", PyDict_GET_SIZE(dict),
                     NUM_FIELDS);
        return -1;
    }
    return 0;
}

PyObject *mom_config_fields(void) {
    PyObject *list = PyList_New(0); /* new reference */
    for (size_t i = 0; list && i < NUM_FIELDS; i++) {
        PyObject *key = PyUnicode_FromString(fields[i].key); /* new reference */
        if (!key || PyList_Append(list, key) < 0)
            Py_CLEAR(list);
        Py_XDECREF(key);
    }
    return list;
}
