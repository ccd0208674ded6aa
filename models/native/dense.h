/* Layers: y = f(bias + x * weights), for one row or for a block of rows, with the same bits.
 *
 * A panel is up to PANEL_MAX vectors of outputs; its weights stand as [K][vectors * VL]. Each output is one chain of
 * fused multiply-adds along k (LAYOUT_WIDE), or a fixed number of them (LAYOUT_SPLIT, LAYOUT_DOT) where one chain would
 * wait for itself. Leaving out a zero activation changes at most the sign of a zero, which the last addition of +0
 * takes away, so a block of rows (which leaves out nothing) and a row agree. 8-bit weights are summed up as they are; one
 * multiplication at the end scales the sum and adds the bias. */
#pragma once
#include "internal.h"
#include "vector.h"

#ifndef UNROLL /* as INLINE */
#define UNROLL _Pragma("GCC unroll 32")
#endif

/* In plain C narrow weights are widened at load. */
INLINE size_t weight_bytes(const int type) { return VL == 1 || type == WEIGHTS_F32 ? 4 : type == WEIGHTS_I8 ? 1 : 2; }

INLINE vf weights_at(const int type, const void *w, size_t i) {
#if VL > 1
    if (type == WEIGHTS_F16) return v_half((const uint16_t *)w + i);
    if (type == WEIGHTS_BF16) return v_bfloat((const uint16_t *)w + i);
    if (type == WEIGHTS_I8) return v_byte((const int8_t *)w + i);
#endif
    (void)type;
    return v_load((const float *)w + i);
}

/* What a sum begins with: the bias, or nothing where it is still to be scaled. */
INLINE vf begun(const int type, const float *bias) { return type == WEIGHTS_I8 ? v_zero() : v_load(bias); }

/* `floor` is 0 for ReLU and -infinity for none. */
INLINE vf finished(const int type, const float floor, vf sum, const float *scale, const float *bias) {
    if (type == WEIGHTS_I8) sum = v_fma(sum, v_load(scale), v_load(bias));
    return v_max(v_set1(floor), v_add(sum, v_zero()));
}

/* One row, one chain an output: all k, or the `n` that `ids` names, whose x stand in `x` one after the other. */
INLINE void wide_row(const int vectors, const int type, const float floor, const float *x, const int32_t *ids, size_t n,
                     const void *weights, const float *scale, const float *bias, float *y) {
    vf sum[PANEL_MAX];
    const size_t width = (size_t)vectors * VL;
    UNROLL for (int p = 0; p < vectors; p++) sum[p] = begun(type, bias + p * VL);
    if (ids) {
        for (size_t j = 0; j < n; j++) {
            const vf value = v_set1(x[j]);
            const size_t at = (size_t)ids[j] * width;
            UNROLL for (int p = 0; p < vectors; p++)
                sum[p] = v_fma(weights_at(type, weights, at + p * VL), value, sum[p]);
        }
    } else {
        size_t at = 0;
        for (size_t k = 0; k < n; k++, at += width) {
            const vf value = v_set1(x[k]);
            UNROLL for (int p = 0; p < vectors; p++)
                sum[p] = v_fma(weights_at(type, weights, at + p * VL), value, sum[p]);
        }
    }
    UNROLL for (int p = 0; p < vectors; p++)
        v_store(y + p * VL, finished(type, floor, sum[p], scale + p * VL, bias + p * VL));
}

/* One row, SPLIT_CHAINS chains an output: chain c adds up k = c, c + 4, ...; the bias is in the first. */
INLINE void split_row(const int vectors, const int type, const float floor, const float *x, size_t n, const void *weights,
                      const float *scale, const float *bias, float *y) {
    vf sum[SPLIT_CHAINS][SPLIT_MAX];
    const size_t width = (size_t)vectors * VL;
    UNROLL for (int p = 0; p < vectors; p++) {
        sum[0][p] = begun(type, bias + p * VL);
        sum[1][p] = sum[2][p] = sum[3][p] = v_zero();
    }
    size_t k = 0, at = 0;
    for (; k + SPLIT_CHAINS <= n; k += SPLIT_CHAINS) {
        UNROLL for (int c = 0; c < (int)SPLIT_CHAINS; c++, at += width) {
            const vf value = v_set1(x[k + c]);
            UNROLL for (int p = 0; p < vectors; p++)
                sum[c][p] = v_fma(weights_at(type, weights, at + p * VL), value, sum[c][p]);
        }
    }
    UNROLL for (int c = 0; c < (int)SPLIT_CHAINS - 1; c++) {
        if (k + c < n) {
            const vf value = v_set1(x[k + c]);
            UNROLL for (int p = 0; p < vectors; p++)
                sum[c][p] = v_fma(weights_at(type, weights, at + p * VL), value, sum[c][p]);
            at += width;
        }
    }
    UNROLL for (int p = 0; p < vectors; p++) {
        const vf all = v_add(v_add(sum[0][p], sum[1][p]), v_add(sum[2][p], sum[3][p]));
        v_store(y + p * VL, finished(type, floor, all, scale + p * VL, bias + p * VL));
    }
}

/* A block of `rows` rows and `vectors` vectors of a panel that is `width` floats wide. */
INLINE void wide_block(const int rows, const int vectors, const int type, const float floor, const float *x, size_t ldx,
                       size_t n, const void *weights, size_t column, size_t width, const float *scale, const float *bias,
                       float *y, size_t ldy) {
    vf sum[6][BLOCK_VECTORS];
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int q = 0; q < vectors; q++) sum[r][q] = begun(type, bias + q * VL);
    }
    size_t at = column;
    for (size_t k = 0; k < n; k++, at += width) {
        vf w[BLOCK_VECTORS];
        UNROLL for (int q = 0; q < vectors; q++) w[q] = weights_at(type, weights, at + q * VL);
        UNROLL for (int r = 0; r < rows; r++) {
            const vf value = v_set1(x[r * ldx + k]);
            UNROLL for (int q = 0; q < vectors; q++) sum[r][q] = v_fma(w[q], value, sum[r][q]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++) {
        UNROLL for (int q = 0; q < vectors; q++)
            v_store(y + r * ldy + q * VL, finished(type, floor, sum[r][q], scale + q * VL, bias + q * VL));
    }
}

INLINE void wide_rows_of_panel(const int rows, int panel, const int type, const float floor, const float *x, size_t ldx,
                               size_t n, const void *weights, const float *scale, const float *bias, float *y, size_t ldy) {
    const size_t width = (size_t)panel * VL;
    int q = 0;
    for (; q + BLOCK_VECTORS <= panel; q += BLOCK_VECTORS)
        wide_block(rows, BLOCK_VECTORS, type, floor, x, ldx, n, weights, q * VL, width, scale + q * VL, bias + q * VL,
                   y + q * VL, ldy);
    for (; q < panel; q++)
        wide_block(rows, 1, type, floor, x, ldx, n, weights, q * VL, width, scale + q * VL, bias + q * VL, y + q * VL, ldy);
}

/* Every panel of a layer; the type of the weights is a constant where it is used. */
INLINE void wide_layer(const int type, const float floor, const struct dense *d, const float *x, size_t ldx, uint32_t rows,
                       float *y, size_t ldy, const float *packed, const int32_t *ids, size_t packed_count) {
    const char *w = d->weights;
    const float *bias = d->bias;
    uint32_t vectors = d->n_padded / VL;
    for (uint32_t first = 0; first < vectors;) {
        const uint32_t panel = vectors - first < PANEL_MAX ? vectors - first : PANEL_MAX;
        const size_t column = (size_t)first * VL;
        if (rows == 1) {
            const float *from = ids ? packed : x;
            const size_t n = ids ? packed_count : d->k;
#define ROW(P) case P: wide_row(P, type, floor, from, ids, n, w, d->scale + column, bias + column, y + column); break;
            switch (panel) {
                ROW(1) ROW(2) ROW(3) ROW(4) ROW(5) ROW(6) ROW(7) ROW(8)
#if PANEL_MAX > 8
                ROW(9) ROW(10) ROW(11) ROW(12) ROW(13) ROW(14) ROW(15) ROW(16)
#endif
            }
#undef ROW
        } else {
            for (uint32_t r = 0; r < rows;) {
                const uint32_t count = rows - r < 6 ? rows - r : 6;
                const float *xr = x + r * ldx;
                float *yr = y + column + r * ldy;
#define ROWS(R) case R: wide_rows_of_panel(R, (int)panel, type, floor, xr, ldx, d->k, w, d->scale + column, bias + column, yr, ldy); break;
                switch (count) { ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) }
#undef ROWS
                r += count;
            }
        }
        w += (size_t)d->k * panel * VL * weight_bytes(type);
        first += panel;
    }
}

INLINE void split_layer(const int type, const float floor, const struct dense *d, const float *x, float *y) {
    const char *w = d->weights;
    const float *bias = d->bias;
    uint32_t vectors = d->n_padded / VL;
    for (uint32_t first = 0; first < vectors;) {
        const uint32_t panel = vectors - first < SPLIT_MAX ? vectors - first : SPLIT_MAX;
        const size_t column = (size_t)first * VL;
#define ROW(P) case P: split_row(P, type, floor, x, d->k, w, d->scale + column, bias + column, y + column); break;
        switch (panel) {
            ROW(1) ROW(2) ROW(3)
#if SPLIT_MAX > 3
            ROW(4)
#endif
        }
#undef ROW
        w += (size_t)d->k * panel * VL * weight_bytes(type);
        first += panel;
    }
}

/* Few outputs: DOT_LANES chains along k for each, joined in pairs. `x` has zeros up to the next multiple of DOT_LANES. */
INLINE void dot_layer(const struct dense *d, const float *x, float *y) {
    const size_t padded = ROUND_UP((size_t)d->k, DOT_LANES);
    for (uint32_t n = 0; n < d->n; n++) {
        const float *w = (const float *)d->weights + n * padded;
        vf sum[DOT_LANES / VL];
        UNROLL for (int c = 0; c < (int)(DOT_LANES / VL); c++) sum[c] = v_zero();
        for (size_t k = 0; k < padded; k += DOT_LANES) {
            UNROLL for (int c = 0; c < (int)(DOT_LANES / VL); c++)
                sum[c] = v_fma(v_load(w + k + c * VL), v_load(x + k + c * VL), sum[c]);
        }
        float lane[DOT_LANES];
        UNROLL for (int c = 0; c < (int)(DOT_LANES / VL); c++) v_store(lane + c * VL, sum[c]);
        for (int half = DOT_LANES / 2; half; half /= 2) {
            for (int i = 0; i < half; i++) lane[i] += lane[i + half];
        }
        y[n] = lane[0] + d->bias[n];
    }
}

/* The k at which a row is not zero, in order, and what stands there. */
INLINE size_t pack_row(const float *x, size_t k, float *values, int32_t *ids) {
    size_t n = 0, i = 0;
#if defined(__AVX512F__)
    __m512i id = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (; i + 16 <= k; i += 16) {
        const __m512 v = _mm512_loadu_ps(x + i);
        const __mmask16 mask = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_UQ);
        _mm512_storeu_ps(values + n, _mm512_maskz_compress_ps(mask, v));
        _mm512_storeu_si512(ids + n, _mm512_maskz_compress_epi32(mask, id));
        n += (size_t)__builtin_popcount(mask);
        id = _mm512_add_epi32(id, _mm512_set1_epi32(16));
    }
#elif defined(__AVX2__)
    __m256i id = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
    for (; i + 8 <= k; i += 8) {
        const __m256 v = _mm256_loadu_ps(x + i);
        const unsigned mask = (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_NEQ_UQ));
        const __m256i order = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((long long)compress_order[mask]));
        _mm256_storeu_ps(values + n, _mm256_permutevar8x32_ps(v, order));
        _mm256_storeu_si256((__m256i *)(ids + n), _mm256_permutevar8x32_epi32(id, order));
        n += (size_t)__builtin_popcount(mask);
        id = _mm256_add_epi32(id, _mm256_set1_epi32(8));
    }
#endif
    for (; i < k; i++) {
        values[n] = x[i];
        ids[n] = (int32_t)i;
        n += !(x[i] == 0.0f);
    }
    return n;
}

#define PACK_ROWS_MAX 1 /* from here on a block of rows, which reads each weight once, is sooner done */

/* `rows` rows of a layer. Writes n_padded floats to each row of `y`. */
static void dense_rows(const struct dense *d, const struct scratch *scratch, const float *x, size_t ldx, uint32_t rows,
                       float *y, size_t ldy) {
    const int relu = d->function == F_RELU;
    const float floor = relu ? 0.0f : -INFINITY;
    if (d->layout == LAYOUT_DOT) {
        const size_t padded = ROUND_UP((size_t)d->k, DOT_LANES);
        for (uint32_t r = 0; r < rows; r++) {
            const float *row = x + r * ldx;
            if (padded != d->k) {
                memcpy(scratch->packed, row, d->k * sizeof *row);
                memset(scratch->packed + d->k, 0, (padded - d->k) * sizeof *row);
                row = scratch->packed;
            }
            dot_layer(d, row, y + r * ldy);
        }
    } else if (d->layout == LAYOUT_SPLIT) {
        for (uint32_t r = 0; r < rows; r++) {
#define SPLIT(type) split_layer(type, floor, d, x + r * ldx, y + r * ldy);
#if VL > 1
            if (d->type == WEIGHTS_F16) { SPLIT(WEIGHTS_F16) continue; }
            if (d->type == WEIGHTS_BF16) { SPLIT(WEIGHTS_BF16) continue; }
#endif
            if (d->type == WEIGHTS_I8) { SPLIT(WEIGHTS_I8) continue; }
            SPLIT(WEIGHTS_F32)
#undef SPLIT
        }
    } else {
        const int32_t *ids = NULL;
        size_t count = 0;
        if (d->skip && rows <= PACK_ROWS_MAX) {
            ids = scratch->packed_ids;
            count = pack_row(x, d->k, scratch->packed, scratch->packed_ids);
        }
#define WIDE(type) wide_layer(type, floor, d, x, ldx, rows, y, ldy, scratch->packed, ids, count)
#if VL > 1
        if (d->type == WEIGHTS_F16) WIDE(WEIGHTS_F16);
        else if (d->type == WEIGHTS_BF16) WIDE(WEIGHTS_BF16);
        else
#endif
            if (d->type == WEIGHTS_I8) WIDE(WEIGHTS_I8);
            else WIDE(WEIGHTS_F32);
#undef WIDE
    }
    if (d->function != F_IDENTITY && (!relu || d->layout == LAYOUT_DOT)) {
        for (uint32_t r = 0; r < rows; r++) map(d->function, y + r * ldy, y + r * ldy, d->n, d->alpha, d->beta);
    }
}
