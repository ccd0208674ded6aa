/* The kernels for AVX-512 (F, BW, DQ and VL: every server since Skylake, every desktop since Zen 4); compiled with those
 * switched on. */
#if defined(__x86_64__)
#define ISA avx512
#define ISA_NAME "avx512"
#include "run.h"
#endif
