/* How C code runs a native engine without Python: the fast path, a thread of its own.
 *
 * Python makes a runner (`NativeBackend.runner()`): the engine's weights, which all its runners share and never write,
 * and scratch memory that belongs to this runner alone. `runner.capsule` is a PyCapsule that holds a `struct
 * sigd_runner *`:
 *
 *     struct sigd_runner *runner = PyCapsule_GetPointer(capsule, SIGD_RUNNER_CAPSULE);
 *     if (runner->version != SIGD_RUNNER_VERSION) ...
 *     if (runner->run(runner->engine, rows, out, n)) ...
 *
 * - One thread at a time may call `run` of one runner. Threads that run at once take a runner each.
 * - `run` needs neither Python's lock nor any setting of the thread: it flushes denormals to zero by itself and leaves
 *   the floating-point settings as they were. It allocates nothing and makes no system call.
 * - A row gives the same bits alone, in any batch, on any runner and on every instruction set. The bits of a NaN are
 *   not promised. Features and answers are not checked for being finite: that is the caller's part.
 * - The struct and all that it points to stay valid until the capsule is gone: keep a reference to it.
 */
#pragma once
#include <stdint.h>

#define SIGD_RUNNER_CAPSULE "sigd.models.native.runner"
#define SIGD_RUNNER_VERSION 1u

struct sigd_runner {
    uint32_t version;  /* SIGD_RUNNER_VERSION */
    uint32_t features; /* floats of a row */
    uint32_t outputs;  /* floats of an answer */
    uint32_t rows_max; /* most rows that one call takes */
    void *engine;      /* the first argument of `run` */
    /* Answer `n` rows, 1 <= n <= rows_max: `rows` holds n * features floats, `out` has room for n * outputs, both in
     * C order, aligned as float, and not overlapping. Returns 0; or -1 where n is out of its range, with `out` as it
     * was. */
    int (*run)(void *engine, const float *rows, float *out, int n);
};

/* How C code answers steps: `SlidingWindows.capsule`, of a model that slides (sliding.h), holds a `struct sigd_steps *`.
 * The same rules hold; `place` is the instrument's, below the number of places of the windows. */
#define SIGD_STEPS_CAPSULE "sigd.models.native.steps"
#define SIGD_STEPS_VERSION 1u

struct sigd_steps {
    uint32_t version;  /* SIGD_STEPS_VERSION */
    uint32_t features; /* floats of a step */
    uint32_t outputs;  /* floats of an answer */
    uint32_t places;
    void *steps; /* the first argument of the functions */
    /* What the model answers where `row` is the newest step, which is not stored; without `row` the newest step that is.
     * Returns 0; or -1 where the window has fewer steps than the model looks at, with `out` as it was. */
    int (*answer)(void *steps, uint32_t place, const float *row, float *out);
    /* Store the newest step. The windows under way wait for `Sliding.advance`, or for `catch_up`. */
    void (*store)(void *steps, uint32_t place, const float *row);
    /* Advance windows of the instrument where they are far behind its steps: no more than as if all took one step. */
    void (*catch_up)(void *steps, uint32_t place);
};
