/* Damaged plans against the loader and the kernels: fuzz_plans COUNT SEED PLAN... Each plan is damaged in a few words of
 * its tables, or cut, and loaded; what is not refused is run on two batches. The sanitizers end the process where
 * anything is read or written out of place. Prints how many were refused, how many ran, and how many of those answered
 * steps of windows too. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "columns.h"

static uint64_t state;

static uint32_t draw(uint32_t below) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)((state >> 16) % below);
}

static void damage(uint8_t *plan, size_t size) {
    /* The tables lie at the start; what follows are weights. */
    const size_t tables = size < 1024 ? size : 1024;
    for (uint32_t times = 1 + draw(3); times; times--) {
        const size_t at = draw(8) ? draw((uint32_t)(tables / 4)) * 4 : draw((uint32_t)(size / 4)) * 4;
        uint32_t word;
        memcpy(&word, plan + at, 4);
        switch (draw(8)) {
        case 0: word = 0; break;
        case 1: word = UINT32_MAX; break;
        case 2: word = draw(16); break;
        case 3: word += 1; break;
        case 4: word -= 1; break;
        case 5: word ^= 1u << draw(32); break;
        case 6: word = draw(UINT32_MAX); break;
        default: memcpy(&word, plan + draw((uint32_t)(tables / 4)) * 4, 4);
        }
        memcpy(plan + at, &word, 4);
    }
}

static void run(const struct engine *e, float *rows, float *out) {
    struct runner *r = runner_new(e, 7);
    if (!r) return;
    for (int n = 1; n <= 7; n += 6) r->facts.run(r->facts.engine, rows, out, n);
    runner_free(r);
}

/* Some steps of two instruments, with windows that are behind; 1 where the plan allows it. */
static int slide(const struct engine *e, const float *rows, float *out) {
    enum { PLACES = 2 };
    char error[200];
    struct sliding s;
    uint64_t stored[PLACES] = {0}, begin[PLACES] = {0};
    const uint32_t steps = draw(4) ? 4 + 4 * draw(2) : draw(12);
    struct step_view *view = NULL;
    struct column_view *columns = NULL;
    if (draw(2)) view = step_view_new(e, steps, error, sizeof error);
    else columns = column_view_new(e, steps, 1 + draw(2), error, sizeof error);
    if (view ? sliding_begin(&s, view) : !columns || columns_begin(&s, columns, e)) return 0;
    struct windows w = {.sliding = &s, .places = PLACES, .stored = stored, .begin = begin};
    w.rows = malloc(PLACES * 2 * steps * s.features * sizeof *w.rows);
    w.states = malloc(PLACES * s.place_floats * sizeof *w.states);
    if (w.rows && w.states && !windows_begin(&w)) {
        for (uint32_t i = 0; i < 3 * steps; i++) {
            const uint32_t place = draw(PLACES);
            if (!draw(20)) begin[place] = stored[place];
            w.facts.answer(&w, place, rows + i, out);
            w.facts.store(&w, place, rows + i);
            w.facts.answer(&w, place, NULL, out);
            for (uint32_t more = draw(8); more; more--) sliding_advance(&s);
            if (!draw(4)) w.facts.catch_up(&w, place);
        }
        windows_end(&w);
    }
    free(w.rows);
    free(w.states);
    sliding_end(&s);
    return 1;
}

int main(int count, char **words) {
    const long wanted = atol(words[1]);
    state = strtoull(words[2], NULL, 10) * 0x9e3779b97f4a7c15u + 1;
    long refused = 0, ran = 0, slid = 0;
    float *rows = calloc(7 * 4096, sizeof *rows), *out = calloc(7 * 4096, sizeof *out);
    for (int i = 0; i < 7 * 4096; i++) rows[i] = (float)(i % 17) - 8.0f;
    const char *const sets[] = {"plain", "avx2", "avx512"};
    for (long i = 0; i < wanted; i++) {
        FILE *file = fopen(words[3 + i % (count - 3)], "rb");
        static uint8_t whole[1 << 20];
        const size_t size = file ? fread(whole, 1, sizeof whole, file) : 0;
        if (!file || !size) return 2;
        fclose(file);
        const size_t kept = draw(16) ? size : draw((uint32_t)size);
        uint8_t *plan = malloc(kept + 1); /* exactly as long, so that the sanitizer sees a step too far */
        memcpy(plan, whole, kept);
        if (kept >= 64) damage(plan, kept);
        char error[200];
        const struct isa *isa = isa_find(sets[draw(3)]);
        struct engine *e = engine_load(plan, kept, isa ? isa : isa_find("plain"), error, sizeof error);
        if (!e) refused++;
        else if (e->features <= 4096 && e->outputs <= 4096 && e->row_floats + e->temporary_row_floats < 1 << 20 &&
                 e->macs < 1 << 24) {
            run(e, rows, out);
            slid += slide(e, rows, out);
            ran++;
        }
        engine_free(e);
        free(plan);
    }
    free(rows);
    free(out);
    printf("%ld plans: %ld refused, %ld ran, %ld by steps\n", wanted, refused, ran, slid);
    return 0;
}
