/* Runners: scratch memory, and the floating-point settings under which every build gives the same bits. */
#include "runner.h"

#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <xmmintrin.h>
#endif

#define BLOCK_FLOATS (64u << 10) /* of the buffers of one block of rows: they stay in the second-level cache */
#define BLOCK_ROWS_MAX 48u
#define BLOCK_ROWS_MIN 6u

static uint32_t block_rows(const struct engine *e, uint32_t rows_max) {
    const size_t row = e->row_floats + e->temporary_row_floats;
    size_t rows = BLOCK_FLOATS / row / BLOCK_ROWS_MIN * BLOCK_ROWS_MIN;
    rows = rows > BLOCK_ROWS_MAX ? BLOCK_ROWS_MAX : rows < BLOCK_ROWS_MIN ? BLOCK_ROWS_MIN : rows;
    return rows_max < rows ? rows_max : (uint32_t)rows;
}

/* Memory handed out piece by piece, each aligned to 64 bytes; NULL only counts. */
struct pieces {
    char *memory;
    size_t used;
};

static void *piece(struct pieces *p, size_t bytes) {
    void *at = p->memory ? p->memory + p->used : NULL;
    p->used += ROUND_UP(bytes, 64);
    return at;
}

static struct scratch layout(const struct engine *e, uint32_t rows_max, struct pieces *p) {
    struct scratch s = {.block_rows = block_rows(e, rows_max)};
    const size_t temporary = s.block_rows * e->temporary_row_floats;
    const size_t spare = 2 * DOT_LANES;
    s.arena = piece(p, s.block_rows * e->row_floats * sizeof(float));
    s.temporary = piece(p, ((temporary > e->temporary_floats ? temporary : e->temporary_floats) + spare) * sizeof(float));
    s.packed = piece(p, (e->k_max + spare) * sizeof(float));
    s.packed_ids = piece(p, (e->k_max + spare) * sizeof(int32_t));
    return s;
}

#if defined(__x86_64__)
/* Exceptions masked, to nearest, denormals flushed, as operands and as results. */
#define SETTINGS 0x9fc0u
#define FLAGS 0x3fu
static uint32_t settings_enter(void) {
    const uint32_t before = _mm_getcsr();
    if ((before & ~FLAGS) != SETTINGS) _mm_setcsr(SETTINGS);
    return before;
}
static void settings_leave(uint32_t before) {
    if ((before & ~FLAGS) != SETTINGS) _mm_setcsr(before);
}
#elif defined(__aarch64__)
#define SETTINGS (1ull << 24)
static uint64_t settings_enter(void) {
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before));
    if (before != SETTINGS) __asm__ volatile("msr fpcr, %0" : : "r"(SETTINGS));
    return before;
}
static void settings_leave(uint64_t before) {
    if (before != SETTINGS) __asm__ volatile("msr fpcr, %0" : : "r"(before));
}
#else
#error "native kernels need x86-64 or AArch64, where denormals can be flushed"
#endif

static int run(void *engine, const float *rows, float *out, int n) {
    const struct runner *r = engine;
    if (n < 1 || (uint32_t)n > r->facts.rows_max) return -1;
    __typeof__(settings_enter()) before = settings_enter();
    r->engine->isa->run(r->engine, &r->scratch, rows, out, (uint32_t)n);
    settings_leave(before);
    return 0;
}

struct runner *runner_new(const struct engine *e, uint32_t rows_max) {
    struct pieces counted = {NULL, 0};
    layout(e, rows_max, &counted);
    const size_t head = ROUND_UP(sizeof(struct runner), 64);
    struct runner *r = aligned_alloc(64, head + counted.used);
    if (!r) return NULL;
    memset(r, 0, head + counted.used);
    struct pieces laid = {(char *)r + head, 0};
    r->engine = e;
    r->scratch = layout(e, rows_max, &laid);
    r->facts = (struct sigd_runner){
        .version = SIGD_RUNNER_VERSION, .features = e->features, .outputs = e->outputs, .rows_max = rows_max, .engine = r, .run = run,
    };
    return r;
}

void runner_free(struct runner *r) { free(r); }

void runner_step(const struct runner *r, const struct step_view *v, const float *row, float *states, const float *gates,
                 uint32_t n, float *out) {
    __typeof__(settings_enter()) before = settings_enter();
    v->engine.isa->step(v, &r->scratch, row, states, gates, n, out);
    settings_leave(before);
}

void runner_prepare(const struct runner *r, const struct step_view *v, const float *state, float *gates) {
    __typeof__(settings_enter()) before = settings_enter();
    v->engine.isa->prepare(v, &r->scratch, state, gates);
    settings_leave(before);
}

void runner_column(const struct runner *r, const struct column_view *v, const float *row, struct kept_columns kept, float *out) {
    __typeof__(settings_enter()) before = settings_enter();
    v->engine.isa->column(v, &r->scratch, row, kept, out);
    settings_leave(before);
}

/* Asked here, not where the kernels are: those are compiled for what is asked about. */
static int any_processor(void) { return 1; }

#if defined(__x86_64__)
static int has_avx2(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static int has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

const struct isa *isa_find(const char *name) {
    static const struct {
        const struct isa *isa;
        int (*here)(void);
    } known[] = {
#if defined(__x86_64__)
        {&isa_avx512, has_avx512}, {&isa_avx2, has_avx2},
#endif
        {&isa_plain, any_processor},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if ((!name || !strcmp(name, known[i].isa->name)) && known[i].here()) return known[i].isa;
    }
    return NULL;
}
