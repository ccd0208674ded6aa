/* The kernels for AVX-512 (F, BW, DQ and VL: every server since Skylake, every desktop since Zen 4); compiled with those
 * switched on. */
#if defined(__x86_64__)
#define ISA avx512
#define ISA_NAME "avx512"
#include "run.h"

#include <cpuid.h>

static int supported(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif
