#include "model/config.h"

#include <stdint.h>

#define CHECK(condition, ...)                                       \
    do {                                                            \
        if (!(condition))                                           \
            return mom_error_set(err, MOM_ERR_VALUE, __VA_ARGS__);  \
    } while (0)

#define LARGEST ((size_t)1 << 24)

mom_status mom_config_check(const mom_config *c, mom_error *err) {
    CHECK(c->V >= 1 && c->V <= LARGEST, "vocab_size: %zu is not in [1, %zu]", c->V, LARGEST);
    CHECK(c->P >= 1 && c->P <= LARGEST, "n_positions: %zu is not in [1, %zu]", c->P, LARGEST);
    CHECK(c->C >= 1 && c->C <= LARGEST, "n_embd: %zu is not in [1, %zu]", c->C, LARGEST);
    CHECK(c->F >= 1 && c->F <= LARGEST, "n_inner: %zu is not in [1, %zu]", c->F, LARGEST);
    CHECK(c->H >= 1 && c->C % c->H == 0, "n_head: %zu does not divide n_embd = %zu", c->H, c->C);
    CHECK(c->bottom <= 4096 && c->top <= 4096 && c->chunks <= 4096, "layers: more than 4096 of a kind");
    CHECK(c->num_labels <= LARGEST, "num_labels: %zu is more than %zu", c->num_labels, LARGEST);
    if (c->chunks) {
        CHECK(c->num_attn >= 1 && c->num_attn <= 4096, "num_attn: %zu is not in [1, 4096]", c->num_attn);
        CHECK(c->num_ffn >= 1 && c->num_ffn <= 4096, "num_ffn: %zu is not in [1, 4096]", c->num_ffn);
        CHECK(c->rounds <= 65536, "depth_per_chunk: %zu is more than 65536", c->rounds);
        CHECK(c->num_attn == 1 || (c->choices_attn >= c->num_attn && c->choices_attn < INT16_MAX),
              "num_attn: %zu modules but the router has %zu outputs", c->num_attn, c->choices_attn);
        CHECK(c->num_ffn == 1 || (c->choices_ffn >= c->num_ffn && c->choices_ffn < INT16_MAX),
              "num_ffn: %zu modules but the router has %zu outputs", c->num_ffn, c->choices_ffn);
        CHECK(c->R >= 1 && c->R <= LARGEST, "router_dim: %zu is not in [1, %zu]", c->R, LARGEST);
        CHECK(c->router_kind != MOM_ROUTER_NORM || c->R >= (c->num_attn > c->num_ffn ? c->num_attn : c->num_ffn),
              "router_dim: %zu units are too few for the modules of a half", c->R);
        CHECK(!c->coupling_loss || c->router_kind == MOM_ROUTER_LINEAR,
              "router_coupling_loss_coef: needs linear routers, whose rows are as wide as the modules' inputs");
        CHECK(c->temperature > 0.0f, "router_softmax_temperature: %g is not positive", (double)c->temperature);
    }
    return MOM_OK;
}
