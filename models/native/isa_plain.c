/* The kernels in plain C: for any processor, and the twin that the others are compared with. */
#define ISA plain
#define ISA_NAME "plain"
#include "run.h"
