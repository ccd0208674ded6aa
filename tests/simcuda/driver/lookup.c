/* How cuda-bindings finds the driver's functions: by their public names, or by those of a version. */
#include <string.h>

#include "sim.h"

#define TEXT(name) TEXT_OF(name)
#define TEXT_OF(name) #name

static const struct {
    const char *name, *symbol;      /* cuMemAlloc, cuMemAlloc_v2 */
    void *function;
} functions[] = {
#define CALL(name) {#name, TEXT(name), (void *)name},
#include "calls.def"
#undef CALL
};

EXPORT CUresult CUDAAPI cuGetProcAddress(const char *name, void **function, int version, cuuint64_t flags,
                                         CUdriverProcAddressQueryResult *status) {
    ENTER(cuGetProcAddress);
    (void)version;
    (void)flags;
    *function = NULL;
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        if (strcmp(functions[i].name, name) == 0 || strcmp(functions[i].symbol, name) == 0)
            *function = functions[i].function;
    int found = *function != NULL;
    if (status != NULL) *status = found ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return found ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}

/* The tables behind this are private to NVIDIA's libraries, and not imitated. */
EXPORT CUresult CUDAAPI cuGetExportTable(const void **table, const CUuuid *id) {
    ENTER(cuGetExportTable);
    (void)id;
    *table = NULL;
    return CUDA_ERROR_NOT_FOUND;
}
