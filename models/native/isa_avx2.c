/* The kernels for AVX2 with FMA and F16C; compiled with those switched on. */
#if defined(__x86_64__)
#define ISA avx2
#define ISA_NAME "avx2"
#include "run.h"
#endif
