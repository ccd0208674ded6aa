/* What TensorRT's Python bindings are linked with, empty: enough to import them and to read their names and signatures.
 * Nothing here can be called. */
#include <stddef.h>

#define ABSENT(name) \
    void *name(void) { return NULL; }

ABSENT(createInferBuilder_INTERNAL)
ABSENT(createInferRefitter_INTERNAL)
ABSENT(createInferRuntime_INTERNAL)
ABSENT(createNvOnnxParser_INTERNAL)
ABSENT(createNvOnnxParserRefitter_INTERNAL)
ABSENT(getBuilderPluginRegistry)
ABSENT(getNvOnnxParserVersion)
ABSENT(getPluginRegistry)
ABSENT(initLibNvInferPlugins)
