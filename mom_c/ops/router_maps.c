/* What several kinds of routers use: linear maps over all tokens. */
#include "ops/gemv.h"
#include "ops/router_functions.h"

mom_status mom_router_apply(const mom_exec *x, float *out, const float *inp, const mom_router_map *map, int few_rows,
                            size_t N, mom_error *err) {
    const mom_linear_shape shape = {MOM_WEIGHT_OUT_IN, N, map->In, map->Out};
    if (!few_rows)
        return mom_linear_forward(x, out, inp, map->weight, map->bias, 0, &shape, err);
    const mom_gemv_matrix matrix = {MOM_GEMV_F32, MOM_WEIGHT_OUT_IN, map->weight, NULL, map->In, map->Out};
    const mom_gemv gemv = {.out = out, .x = inp, .matrix = &matrix, .bias = map->bias, .rows = N};
    return mom_gemv_run(x, &gemv, 1, err);
}
