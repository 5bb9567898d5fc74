/* bfloat16: the upper 16 bits of a float32. It is used for storage and for the factors of products; every sum is float32.
 *
 * Rounding is to nearest, ties to even; NaN stays NaN. The conversions here are integer arithmetic and keep denormal numbers.
 * Products treat them differently. On x86 and AArch64 a denormal factor counts as zero, because tasks run with denormals
 * switched off (base/parallel.c) and because the processors' bfloat16 instructions ignore denormals, too.
 */
#ifndef MOM_BASE_BF16_H
#define MOM_BASE_BF16_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef uint16_t mom_bf16;

/* Number formats of stored activations and of the factors of products. */
typedef enum { MOM_F32, MOM_BF16 } mom_dtype;

static inline size_t mom_dtype_size(mom_dtype dtype) { return dtype == MOM_BF16 ? sizeof(mom_bf16) : sizeof(float); }

static inline float mom_bf16_to_f32(mom_bf16 v) {
    const uint32_t bits = (uint32_t)v << 16;
    float out;
    memcpy(&out, &bits, sizeof out);
    return out;
}

static inline mom_bf16 mom_bf16_from_f32(float v) {
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
    return (mom_bf16)((v != v ? bits | 0x00400000u : rounded) >> 16);
}

#endif
