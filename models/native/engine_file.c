/* libsigd_engine: an engine file run inside of the caller's own process, for `sigd/engine.hpp`. The same kernels as the
 * daemon's, without Python. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runner.h"
#include "sha256.h"

#define EXPORT __attribute__((visibility("default")))
#define FILE_BYTES_MAX (1ll << 32)

struct sigd_engine_file {
    struct engine *engine;
    uint8_t sha256[32];
};

enum { OPENED, REFUSED, UNREADABLE, OTHER_DIGEST, NO_MEMORY };

/* The whole of a regular file, or NULL with the reason in `error` and in `code`. */
static uint8_t *read_file(const char *path, size_t *size, int *code, char *error, size_t error_size) {
    struct stat facts;
    const int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    *code = UNREADABLE;
    if (file < 0 || fstat(file, &facts)) {
        snprintf(error, error_size, "%s: cannot be read: %s", path, strerror(errno));
        if (file >= 0) close(file);
        return NULL;
    }
    uint8_t *content = NULL;
    if (!S_ISREG(facts.st_mode) || facts.st_size > FILE_BYTES_MAX) {
        snprintf(error, error_size, "%s: expected a regular file of at most 4 GiB", path);
    } else if (!(content = aligned_alloc(64, ROUND_UP((size_t)facts.st_size + 1, 64)))) {
        *code = NO_MEMORY;
        snprintf(error, error_size, "%s: no memory for its %lld bytes", path, (long long)facts.st_size);
    }
    *size = 0;
    while (content && *size < (size_t)facts.st_size) {
        const ssize_t got = read(file, content + *size, (size_t)facts.st_size - *size);
        if (got < 0 && errno == EINTR) continue;
        if (got > 0) {
            *size += (size_t)got;
            continue;
        }
        snprintf(error, error_size, "%s: %s", path, got ? strerror(errno) : "became shorter while it was read");
        free(content);
        content = NULL;
    }
    close(file);
    return content;
}

/* Read, compare with a digest (NULL: any) and check an engine; OPENED with it in `made`, or another code with the reason
 * in `error`. `instruction_set` is "avx512", "avx2", "plain", or NULL for the best. */
EXPORT int sigd_engine_open(const char *path, const uint8_t *sha256, const char *instruction_set,
                            struct sigd_engine_file **made, char *error, size_t error_size) {
    size_t size;
    int code;
    const struct isa *isa = isa_find(instruction_set);
    if (!isa) {
        snprintf(error, error_size, "this processor does not have the instruction set %s", instruction_set);
        return REFUSED;
    }
    uint8_t *content = read_file(path, &size, &code, error, error_size);
    if (!content) return code;
    struct sigd_engine_file *file = calloc(1, sizeof *file);
    if (!file) {
        snprintf(error, error_size, "%s: out of memory", path);
        free(content);
        return NO_MEMORY;
    }
    sha256_of(content, size, file->sha256);
    if (sha256 && memcmp(sha256, file->sha256, sizeof file->sha256)) {
        snprintf(error, error_size, "%s: is not the file whose digest was given", path);
        code = OTHER_DIGEST;
    } else {
        char why[128] = "";
        file->engine = engine_load(content, size, isa, why, sizeof why);
        code = file->engine ? OPENED : REFUSED;
        if (!file->engine)
            snprintf(error, error_size, "%s: no plan of the native kernels (%s): sigd build-engine --runtime native", path, why);
    }
    free(content);
    if (code == OPENED) *made = file;
    else free(file);
    return code;
}

EXPORT void sigd_engine_close(struct sigd_engine_file *file) {
    if (!file) return;
    engine_free(file->engine);
    free(file);
}

EXPORT const uint8_t *sigd_engine_sha256(const struct sigd_engine_file *file) { return file->sha256; }
EXPORT const char *sigd_engine_instruction_set(const struct sigd_engine_file *file) { return file->engine->isa->name; }

/* What runs batches of at most `rows_max` rows, with memory of its own: see engine.h; NULL without memory. */
EXPORT const struct sigd_runner *sigd_engine_runner(const struct sigd_engine_file *file, uint32_t rows_max) {
    struct runner *made = rows_max ? runner_new(file->engine, rows_max) : NULL;
    return made ? &made->facts : NULL;
}

EXPORT void sigd_engine_runner_free(const struct sigd_runner *runner) {
    if (runner) runner_free(runner->engine);
}
