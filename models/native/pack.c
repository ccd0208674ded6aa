/* Layers and trees, packed for an instruction set. */
#include "pack.h"

#include <stdlib.h>
#include <string.h>

uint64_t compress_order[256];

__attribute__((constructor)) static void fill_compress_order(void) {
    for (unsigned mask = 0; mask < 256; mask++) {
        unsigned count = 0;
        for (unsigned lane = 0; lane < 8; lane++) {
            if (mask >> lane & 1) compress_order[mask] |= (uint64_t)lane << 8 * count++;
        }
    }
}

static float float_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Exact, by whole numbers alone, for the processor may be set to flush denormals. */
static float half_to_float(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t exponent = half >> 10 & 31, fraction = half & 1023;
    if (!exponent) {
        if (!fraction) return float_from_bits(sign);
        for (exponent = 1; !(fraction & 1024); fraction <<= 1) exponent--;
        fraction &= 1023;
    }
    return float_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

static float weight_at(const void *weights, uint32_t dtype, size_t i) {
    if (dtype == PLAN_F16) return half_to_float(((const uint16_t *)weights)[i]);
    if (dtype == PLAN_BF16) return float_from_bits((uint32_t)((const uint16_t *)weights)[i] << 16);
    if (dtype == PLAN_I8) return ((const int8_t *)weights)[i];
    return ((const float *)weights)[i];
}

/* One layer's panels, one behind the other: [K][columns of the panel], zeros beyond the last output. */
static void pack_panels(const struct dense *d, const void *weights, size_t size, uint32_t lanes, uint32_t panel_max, char *to) {
    const uint32_t vectors = d->n_padded / lanes;
    for (uint32_t first = 0; first < vectors; first += panel_max) {
        const uint32_t panel = vectors - first < panel_max ? vectors - first : panel_max;
        const size_t column = (size_t)first * lanes, width = (size_t)panel * lanes;
        const size_t real = column >= d->n ? 0 : d->n - column < width ? d->n - column : width;
        for (size_t k = 0; k < d->k; k++, to += width * size)
            memcpy(to, (const char *)weights + (k * d->n + column) * size, real * size);
    }
}

static void *widened(const void *weights, uint32_t dtype, size_t count) {
    float *wide = malloc(count * sizeof *wide);
    for (size_t i = 0; wide && i < count; i++) wide[i] = weight_at(weights, dtype, i);
    return wide;
}

static int pack_dot(struct engine *e, struct dense *d, const void *weights, uint32_t dtype) {
    const size_t padded = ROUND_UP((size_t)d->k, DOT_LANES);
    float *to = engine_allocate(e, padded * d->n * sizeof *to);
    if (!to) return -1;
    for (size_t k = 0; k < d->k; k++) {
        for (size_t n = 0; n < d->n; n++) to[n * padded + k] = weight_at(weights, dtype, k * d->n + n);
    }
    d->type = WEIGHTS_F32;
    d->weights = to;
    return 0;
}

static const float *padded(struct engine *e, const struct dense *d, const float *values) {
    float *to = engine_allocate(e, d->n_padded * sizeof *to);
    if (to) memcpy(to, values, d->n * sizeof *to);
    return to;
}

int pack_layer(struct engine *e, struct dense *d, const void *weights, uint32_t dtype, const float *bias, const float *scale,
               int recurrent) {
    const struct isa *isa = e->isa;
    d->n_padded = ROUND_UP(d->n, 16);
    d->layout = recurrent ? LAYOUT_WIDE : d->n <= DOT_OUTPUTS_MAX ? LAYOUT_DOT : d->n < WIDE_OUTPUTS_MIN ? LAYOUT_SPLIT : LAYOUT_WIDE;
    d->bias = padded(e, d, bias);
    d->scale = scale ? padded(e, d, scale) : d->bias;
    if (!d->bias || !d->scale) return -1;
    if (d->layout == LAYOUT_DOT) return pack_dot(e, d, weights, dtype);
    d->type = dtype == PLAN_F16 ? WEIGHTS_F16 : dtype == PLAN_BF16 ? WEIGHTS_BF16 : dtype == PLAN_I8 ? WEIGHTS_I8 : WEIGHTS_F32;
    size_t size = dtype == PLAN_F32 ? 4 : dtype == PLAN_I8 ? 1 : 2;
    void *wide = NULL;
    if (dtype != PLAN_F32 && isa->lanes == 1) {
        wide = widened(weights, dtype, (size_t)d->k * d->n);
        if (!wide) return -1;
        weights = wide;
        size = 4;
        if (d->type != WEIGHTS_I8) d->type = WEIGHTS_F32;
    }
    char *to = engine_allocate(e, (size_t)d->k * d->n_padded * size);
    if (to) pack_panels(d, weights, size, isa->lanes, d->layout == LAYOUT_WIDE ? isa->panel_max : isa->split_max, to);
    free(wide);
    d->weights = to;
    return to ? 0 : -1;
}
