/* Integer arithmetic with Python's results: quotients of integers are rounded once, as int / int is. */
#ifndef SIGD_FEATURES_EXACT_H
#define SIGD_FEATURES_EXACT_H

#include <math.h>
#include <stdbool.h>
#include <stdint.h>

typedef __int128 wide;
typedef unsigned __int128 uwide;

#define EXACT_DOUBLE ((wide)1 << 53)

static inline int bits_of(uwide value) {
    uint64_t high = (uint64_t)(value >> 64), low = (uint64_t)value;
    if (high) return 128 - __builtin_clzll(high);
    return low ? 64 - __builtin_clzll(low) : 0;
}

/* numerator / denominator for operands that a double does not hold exactly. Neither is 0. */
static double quotient_of_large(wide numerator, wide denominator) {
    bool negative = (numerator < 0) != (denominator < 0);
    uwide a = numerator < 0 ? -(uwide)numerator : (uwide)numerator;
    uwide b = denominator < 0 ? -(uwide)denominator : (uwide)denominator;
    int scale = 56 - (bits_of(a) - bits_of(b));
    uwide quotient, rest;
    if (scale < 0) {
        scale = 0; /* the integer part alone has more bits than a double keeps */
        quotient = a / b;
        rest = a % b;
    } else if (bits_of(a) + scale <= 128) {
        quotient = (a << scale) / b;
        rest = (a << scale) % b;
    } else {
        /* Long division, a bit at a time, with both operands at the top of their words less one bit. */
        int shift = 127 - bits_of(b), bits = 56;
        int lead = 127 - bits_of(a);
        a <<= lead;
        b <<= shift;
        scale = 56 + lead - shift;
        quotient = a >= b;
        rest = quotient ? a - b : a;
        while (bits--) {
            rest <<= 1;
            quotient <<= 1;
            if (rest >= b) {
                rest -= b;
                quotient |= 1;
            }
        }
    }
    /* At least two bits below a double's last, and whether anything is left below them: rounding is exact.
     */
    quotient = quotient << 1 | (rest != 0);
    double value = ldexp((double)quotient, -scale - 1);
    return negative ? -value : value;
}

/* numerator / denominator as Python divides two integers; 0 where the denominator is 0. */
static inline double quotient_of(wide numerator, wide denominator) {
    if (denominator == 0) return 0.0;
    if (-EXACT_DOUBLE <= numerator && numerator <= EXACT_DOUBLE && -EXACT_DOUBLE <= denominator &&
        denominator <= EXACT_DOUBLE)
        return (double)(int64_t)numerator / (double)(int64_t)denominator;
    return numerator ? quotient_of_large(numerator, denominator) : 0.0;
}

/* ln(1 + microseconds) */
static inline double age_of(int64_t elapsed_ns) { return log1p((double)elapsed_ns / 1e3); }

#endif
