#include "bindings/routes.h"

#include "bindings/convert.h"

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
