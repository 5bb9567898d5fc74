#include "model/balance_bias.h"

void mom_balance_biases(const mom_params *p, const mom_gradients *g, float rate, size_t begin, size_t end) {
    for (size_t i = 0; i < p->count; i++) {
        const mom_param *param = &p->table[i];
        if (param->rule != MOM_RULE_SIGN || !g->table[i].used)
            continue;
        for (size_t at = mom_max(begin, param->offset); at < mom_min(end, param->offset + param->count); at++) {
            const float excess = g->values[at];
            p->values[at] -= excess > 0.0f ? rate : excess < 0.0f ? -rate : 0.0f;
        }
    }
}
