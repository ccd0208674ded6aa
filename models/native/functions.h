/* Elementwise functions, written for one float. The compiler makes vectors of the loops around them; no sum is
 * regrouped and no product contracted by that (-ffp-contract=off), so every build gives the same bits.
 *
 * The polynomials were fitted at Chebyshev nodes; tests/models/native bounds their errors. */
#pragma once
#include <math.h>
#include <string.h>

#include "plan.h"

#ifndef INLINE /* a build for a quick test may say `static`: each function is then compiled once, not once for each size */
#define INLINE static inline __attribute__((always_inline))
#endif

INLINE uint32_t bits_of(float x) { uint32_t u; memcpy(&u, &x, 4); return u; }
INLINE float float_of(uint32_t u) { float x; memcpy(&x, &u, 4); return x; }
/* As the processor's own max and min: the second where either is NaN or both are zero. */
INLINE float larger(float a, float b) { return a > b ? a : b; }
INLINE float smaller(float a, float b) { return a < b ? a : b; }
INLINE float absolute(float x) { return float_of(bits_of(x) & 0x7fffffffu); }
INLINE float with_sign(float x, float sign) {
    return float_of((bits_of(x) & 0x7fffffffu) | (bits_of(sign) & 0x80000000u));
}

#define ROUNDING 12582912.0f /* 1.5 * 2^23: adding it rounds to a whole number, which stands in the low bits then */

INLINE float f_exp(float x) {
    x = larger(-104.0f, smaller(89.0f, x));
    float t = fmaf(x, 1.44269504f, ROUNDING);
    float whole = t - ROUNDING;
    int32_t power = (int32_t)(bits_of(t) - bits_of(ROUNDING));
    float r = fmaf(whole, -0.693359375f, x);
    r = fmaf(whole, 2.12194440e-4f, r);
    float p = 0.0013901526f;
    p = fmaf(p, r, 0.00836373959f);
    p = fmaf(p, r, 0.0416668616f);
    p = fmaf(p, r, 0.166665733f);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p * r, r, r) + 1.0f;
    /* In two steps, for 2^128 is no float. */
    int32_t half = power >> 1;
    p *= float_of((uint32_t)(half + 127) << 23);
    return p * float_of((uint32_t)(power - half + 127) << 23);
}

INLINE float f_log(float x) {
    uint32_t u = bits_of(x);
    int32_t power = (int32_t)(u - 0x3f3504f3u) >> 23;
    float f = float_of(u - ((uint32_t)power << 23)) - 1.0f;
    float p = -0.0797401741f;
    p = fmaf(p, f, 0.126556098f);
    p = fmaf(p, f, -0.129893035f);
    p = fmaf(p, f, 0.142099574f);
    p = fmaf(p, f, -0.166415811f);
    p = fmaf(p, f, 0.200011998f);
    p = fmaf(p, f, -0.25000304f);
    p = fmaf(p, f, 0.333333313f);
    float square = f * f, e = (float)power;
    float y = fmaf(p, square * f, fmaf(-0.5f, square, f));
    y = fmaf(e, -2.12194440e-4f, y);
    y = fmaf(e, 0.693359375f, y);
    y = x > 3.0e38f ? (x > 3.4028235e38f ? x : y) : y;
    y = x == 0.0f ? -INFINITY : y;
    y = x < 0.0f ? NAN : y;
    return x != x ? x : y;
}

INLINE float f_tanh(float x) {
    float z = x * x, p = -0.00609687343f;
    p = fmaf(p, z, 0.0209972989f);
    p = fmaf(p, z, -0.0538509376f);
    p = fmaf(p, z, 0.133327693f);
    p = fmaf(p, z, -0.333333284f);
    float near_zero = fmaf(p * z, x, x);
    float e = f_exp(2.0f * absolute(x));
    float far = with_sign(1.0f - 2.0f / (e + 1.0f), x);
    return absolute(x) < 0.625f ? near_zero : (x != x ? x : far);
}

INLINE float f_sigmoid(float x) { return 1.0f / (1.0f + f_exp(-x)); }

INLINE float f_erf(float x) {
    float z = x * x, p = 8.31677025e-05f;
    p = fmaf(p, z, -0.000813001127f);
    p = fmaf(p, z, 0.00519990642f);
    p = fmaf(p, z, -0.0268589407f);
    p = fmaf(p, z, 0.112836875f);
    p = fmaf(p, z, -0.376126319f);
    p = fmaf(p, z, 1.12837923f);
    float t = smaller(4.0f, absolute(x)), q = -4.07006667e-07f;
    q = fmaf(q, t, 7.04027343e-06f);
    q = fmaf(q, t, -3.39841934e-05f);
    q = fmaf(q, t, -0.000178287853f);
    q = fmaf(q, t, 0.00339490385f);
    q = fmaf(q, t, -0.0235476084f);
    q = fmaf(q, t, 0.10617777f);
    q = fmaf(q, t, 0.63511914f);
    q = fmaf(q, t, 1.12866688f);
    float far = with_sign(1.0f - f_exp(-(q * t)), x);
    return absolute(x) < 0.93f ? p * x : (x != x ? x : far);
}

/* log(1 + e^x) without overflow */
INLINE float f_softplus(float x) {
    float e = f_exp(-absolute(x)), u = 1.0f + e;
    return larger(0.0f, x) + (f_log(u) + (e - (u - 1.0f)) / u); /* what 1 + e^x rounded away comes back */
}

/* The inverse of the normal distribution's integral, as far as the standard's PROBIT asks: sqrt(2) * erfinv(2x - 1),
 * erfinv by Winitzki's formula, which the reference uses too. */
INLINE float f_probit(float x) {
    float v = 2.0f * x - 1.0f, sign = v < 0.0f ? -1.0f : 1.0f;
    float l = f_log((1.0f - v) * (1.0f + v));
    float a = 2.0f / (3.14159274f * 0.147f) + 0.5f * l;
    return 1.41421356f * (sign * sqrtf(sqrtf(a * a - l / 0.147f) - a));
}

INLINE float apply(const uint32_t function, float x, float alpha, float beta) {
    switch (function) {
    case F_RELU: return larger(0.0f, x);
    case F_LEAKY: return x < 0.0f ? alpha * x : x;
    case F_ELU: return x < 0.0f ? alpha * (f_exp(x) - 1.0f) : x;
    case F_SELU: return beta * (x < 0.0f ? alpha * (f_exp(x) - 1.0f) : x);
    case F_SIGMOID: return f_sigmoid(x);
    case F_TANH: return f_tanh(x);
    case F_HARD_SIGMOID: return larger(0.0f, smaller(1.0f, alpha * x + beta));
    case F_CLIP: return smaller(beta, larger(alpha, x));
    case F_GELU: return 0.5f * x * (1.0f + f_erf(0.707106781f * x));
    case F_GELU_TANH: return 0.5f * x * (1.0f + f_tanh(0.797884561f * (x + 0.044715f * (x * x * x))));
    case F_SOFTPLUS: return f_softplus(x);
    case F_SOFTSIGN: return x / (1.0f + absolute(x));
    case F_EXP: return f_exp(x);
    case F_LOG: return f_log(x);
    case F_SQRT: return sqrtf(x);
    case F_ABS: return absolute(x);
    case F_NEG: return -x;
    case F_ERF: return f_erf(x);
    case F_RECIPROCAL: return 1.0f / x;
    case F_HARD_SWISH: return x * larger(0.0f, smaller(1.0f, x / 6.0f + 0.5f));
    case F_SWISH: return x * f_sigmoid(alpha * x);
    case F_MISH: return x * f_tanh(f_softplus(x));
    case F_CELU: return larger(0.0f, x) + smaller(0.0f, alpha * (f_exp(x / alpha) - 1.0f));
    case F_THRESHOLDED_RELU: return x <= alpha ? 0.0f : x;
    case F_SIGN: return x > 0.0f ? 1.0f : (x < 0.0f ? -1.0f : x);
    case F_FLOOR: return floorf(x);
    case F_CEIL: return ceilf(x);
    case F_ROUND: return rintf(x);
    case F_PROBIT: return f_probit(x);
    default: return x;
    }
}

/* One loop for each function, so that each becomes a loop over vectors. `y` may be `x`. */
static void map(const uint32_t function, const float *x, float *y, size_t n, float alpha, float beta) {
#define LOOP(f) case f: for (size_t i = 0; i < n; i++) y[i] = apply(f, x[i], alpha, beta); break;
    switch (function) {
        LOOP(F_RELU) LOOP(F_LEAKY) LOOP(F_ELU) LOOP(F_SELU) LOOP(F_SIGMOID) LOOP(F_TANH) LOOP(F_HARD_SIGMOID)
        LOOP(F_CLIP) LOOP(F_GELU) LOOP(F_GELU_TANH) LOOP(F_SOFTPLUS) LOOP(F_SOFTSIGN) LOOP(F_EXP) LOOP(F_LOG)
        LOOP(F_SQRT) LOOP(F_ABS) LOOP(F_NEG) LOOP(F_ERF) LOOP(F_RECIPROCAL) LOOP(F_HARD_SWISH) LOOP(F_SWISH)
        LOOP(F_MISH) LOOP(F_CELU) LOOP(F_THRESHOLDED_RELU) LOOP(F_SIGN) LOOP(F_FLOOR) LOOP(F_CEIL) LOOP(F_ROUND)
        LOOP(F_PROBIT)
    default:
        if (y != x) memcpy(y, x, n * sizeof *y);
    }
#undef LOOP
}
