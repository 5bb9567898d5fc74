#include "bindings/routes.h"

#include "bindings/convert.h"
#include "ops/forced_choices.h"

const mom_pool *mom_find_pool(const mom_params *params, Py_ssize_t place, Py_ssize_t round, int half) {
    if (place < 0 || (size_t)place >= params->num_places || half < 0 || half > 1 || round < 0 ||
        (size_t)round >= params->places[place].rounds) {
        PyErr_SetString(PyExc_IndexError, "route: no such place, round or half");
        return NULL;
    }
    return half ? &params->places[place].ffn : &params->places[place].attn;
}

PyObject *mom_copy_route(const mom_pool *pool, size_t rows, size_t K, const float *scores, const int16_t *index,
                         const float *weight) {
    const npy_intp all[2] = {(npy_intp)rows, (npy_intp)pool->S}, kept[2] = {(npy_intp)rows, (npy_intp)K};
    return Py_BuildValue("{s:N,s:N,s:N}", "scores", mom_copy_array(2, all, NPY_FLOAT32, scores), "index",
                         mom_copy_array(2, kept, NPY_INT16, index), "weight",
                         mom_copy_array(2, kept, NPY_FLOAT32, weight));
}

int mom_check_forced(const char *name, const int16_t *forced, const mom_topk_spec *spec, size_t M) {
    const size_t K = spec->K, choices = spec->S > M ? spec->S : spec->S + 1; /* S stands for SKIP if the router has none */
    for (size_t i = 0; i < spec->N * K; i++) {
        const int named = forced[i] == MOM_FREE || forced[i] == MOM_NONE || forced[i] == MOM_SKIP;
        if (!named && (forced[i] < 0 || (size_t)forced[i] >= choices)) {
            PyErr_Format(PyExc_ValueError, "%s: choice %d of token %zu, expected 0 to %zu, or -1 (free), -2 (none), -3 (SKIP)",
                         name, forced[i], i / K, choices - 1);
            return 0;
        }
        for (size_t j = i / K * K; j < i; j++)
            if (forced[j] >= 0 && forced[j] == forced[i]) {
                PyErr_Format(PyExc_ValueError, "%s: token %zu has choice %d twice", name, i / K, forced[i]);
                return 0;
            }
    }
    return 1;
}
