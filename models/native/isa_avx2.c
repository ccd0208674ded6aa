/* The kernels for AVX2 with FMA and F16C; compiled with those switched on. */
#if defined(__x86_64__)
#define ISA avx2
#define ISA_NAME "avx2"
#include "run.h"

#include <cpuid.h>

static int supported(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif
