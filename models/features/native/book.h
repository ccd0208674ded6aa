/* The order book: the twin of sigd.models.market.book, which says what each rule is for. */
#ifndef SIGD_FEATURES_BOOK_H
#define SIGD_FEATURES_BOOK_H

#include <stdlib.h>
#include <string.h>

#include "exact.h"

#define DIFFS_KEPT_MAX 4096

typedef struct {
    int64_t price, size;
} level;

/* rank = price * direction: lower is better. Worst first, so that changes near the touch move little
 * memory. */
typedef struct {
    level *levels;
    size_t used, room;
    int64_t direction;
    int64_t known_rank;
    bool whole;
} book_side;

typedef struct {
    int64_t previous_id, last_id;
    level *levels; /* bids, then asks */
    size_t bids, asks;
} kept_diff;

typedef enum { NO_BREAK, GAP, CROSSED } break_kind;

typedef struct {
    book_side bids, asks;
    bool synchronised, at_snapshot;
    int64_t update_id, snapshot_levels;
    kept_diff *kept;
    size_t kept_first, kept_used;
    break_kind broken_by;
    int64_t break_facts[3]; /* what BookGap or BookCrossed tells */
} order_book;

typedef enum { BOOK_FINE, BOOK_BROKEN, BOOK_NO_MEMORY } book_result;

static inline int64_t rank_of(const book_side *side, size_t index) {
    return side->levels[index].price * side->direction;
}

/* How many levels have a rank above this one: the index at which it stands or belongs. */
static inline size_t side_find(const book_side *side, int64_t rank) {
    size_t low = 0, high = side->used;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (rank_of(side, middle) > rank)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static inline bool side_insert(book_side *side, size_t index, level added) {
    if (side->used == side->room) {
        size_t room = side->room ? side->room * 2 : 1024;
        level *more = realloc(side->levels, room * sizeof(level));
        if (more == NULL) return false;
        side->levels = more;
        side->room = room;
    }
    memmove(side->levels + index + 1, side->levels + index, (side->used - index) * sizeof(level));
    side->levels[index] = added;
    side->used++;
    return true;
}

static bool side_apply(book_side *side, const level *levels, size_t count) {
    for (size_t number = 0; number < count; number++) {
        int64_t rank = levels[number].price * side->direction;
        size_t index = side_find(side, rank);
        bool there = index < side->used && rank_of(side, index) == rank;
        if (levels[number].size == 0) {
            if (there) {
                side->used--;
                memmove(side->levels + index, side->levels + index + 1,
                        (side->used - index) * sizeof(level));
            }
        } else if (there) {
            side->levels[index].size = levels[number].size;
        } else if (!side_insert(side, index, levels[number])) {
            return false;
        }
    }
    return true;
}

/* From the last to the first, so that a side that is best first is appended; of equal prices the last one
 * counts. */
static bool side_replace(book_side *side, const level *levels, size_t count, int64_t snapshot_levels) {
    side->used = 0;
    for (size_t number = count; number-- > 0;) {
        if (levels[number].size == 0) continue;
        int64_t rank = levels[number].price * side->direction;
        size_t index = side_find(side, rank);
        if (index < side->used && rank_of(side, index) == rank) continue;
        if (!side_insert(side, index, levels[number])) return false;
    }
    side->whole = (int64_t)count < snapshot_levels;
    side->known_rank = side->used ? rank_of(side, 0) : 0;
    return true;
}

/* The best levels come last in memory: number 0 is the best. */
static inline const level *side_best(const book_side *side, size_t number) {
    return &side->levels[side->used - 1 - number];
}

/* All that rests no further than distance from the price origin; both in 1e-8. */
static wide side_size_within(const book_side *side, int64_t distance, int64_t origin) {
    int64_t last = origin * side->direction + distance;
    wide sum = 0;
    for (size_t number = 0; number < side->used; number++) {
        const level *best = side_best(side, number);
        if (best->price * side->direction > last) break;
        sum += best->size;
    }
    return sum;
}

static bool side_knows(const book_side *side, size_t count, int64_t distance, int64_t origin) {
    if (side->whole) return true;
    if (side->used < count) return false;
    int64_t last = origin * side->direction + distance;
    int64_t rank = side_best(side, count - 1)->price * side->direction;
    return (rank > last ? rank : last) <= side->known_rank;
}

static void book_note_break(order_book *book, break_kind kind, int64_t first, int64_t second,
                            int64_t third) {
    book->bids.used = book->asks.used = 0;
    book->synchronised = false;
    book->broken_by = kind;
    book->break_facts[0] = first;
    book->break_facts[1] = second;
    book->break_facts[2] = third;
}

static bool book_keep(order_book *book, kept_diff diff) {
    if (book->kept == NULL) {
        book->kept = calloc(DIFFS_KEPT_MAX, sizeof(kept_diff));
        if (book->kept == NULL) return false;
    }
    size_t count = diff.bids + diff.asks;
    level *copy = malloc((count ? count : 1) * sizeof(level));
    if (copy == NULL) return false;
    memcpy(copy, diff.levels, count * sizeof(level));
    diff.levels = copy;
    if (book->kept_used == DIFFS_KEPT_MAX) {
        free(book->kept[book->kept_first].levels);
        book->kept[book->kept_first] = diff;
        book->kept_first = (book->kept_first + 1) % DIFFS_KEPT_MAX;
        return true;
    }
    book->kept[(book->kept_first + book->kept_used++) % DIFFS_KEPT_MAX] = diff;
    return true;
}

static inline kept_diff *book_kept(order_book *book, size_t number) {
    return &book->kept[(book->kept_first + number) % DIFFS_KEPT_MAX];
}

static book_result book_apply(order_book *book, const kept_diff *diff) {
    if (diff->previous_id > book->update_id ||
        (diff->previous_id < book->update_id && !book->at_snapshot)) {
        book_note_break(book, GAP, book->update_id, diff->previous_id, 0);
        return BOOK_BROKEN;
    }
    book->at_snapshot = false;
    if (!side_apply(&book->bids, diff->levels, diff->bids) ||
        !side_apply(&book->asks, diff->levels + diff->bids, diff->asks))
        return BOOK_NO_MEMORY;
    book->update_id = diff->last_id;
    return BOOK_FINE;
}

static book_result book_refuse_crossed(order_book *book) {
    if (!book->bids.used || !book->asks.used) return BOOK_FINE;
    int64_t bid = side_best(&book->bids, 0)->price, ask = side_best(&book->asks, 0)->price;
    if (bid < ask) return BOOK_FINE;
    book_note_break(book, CROSSED, bid, ask, book->update_id);
    return BOOK_BROKEN;
}

static book_result book_on_snapshot(order_book *book, const kept_diff *snapshot) {
    if (book->synchronised && snapshot->last_id <= book->update_id) return BOOK_FINE;
    if (!side_replace(&book->bids, snapshot->levels, snapshot->bids, book->snapshot_levels) ||
        !side_replace(&book->asks, snapshot->levels + snapshot->bids, snapshot->asks,
                      book->snapshot_levels))
        return BOOK_NO_MEMORY;
    book->update_id = snapshot->last_id;
    book->synchronised = book->at_snapshot = true;
    book_result result = BOOK_FINE;
    size_t number = 0;
    for (; number < book->kept_used; number++) {
        const kept_diff *diff = book_kept(book, number);
        if (diff->last_id > book->update_id && (result = book_apply(book, diff)) != BOOK_FINE) break;
    }
    /* Those up to the one that broke the chain are done with; it and those after it wait for the next
     * snapshot. */
    for (size_t done = 0; done < number; done++) free(book_kept(book, done)->levels);
    book->kept_first = (book->kept_first + number) % DIFFS_KEPT_MAX;
    book->kept_used -= number;
    return result == BOOK_FINE ? book_refuse_crossed(book) : result;
}

static book_result book_on_diff(order_book *book, const kept_diff *diff) {
    if (!book->synchronised) return book_keep(book, *diff) ? BOOK_FINE : BOOK_NO_MEMORY;
    if (diff->last_id <= book->update_id) return BOOK_FINE;
    book_result result = book_apply(book, diff);
    if (result == BOOK_BROKEN) return book_keep(book, *diff) ? BOOK_BROKEN : BOOK_NO_MEMORY;
    return result == BOOK_FINE ? book_refuse_crossed(book) : result;
}

static void book_free(order_book *book) {
    free(book->bids.levels);
    free(book->asks.levels);
    for (size_t number = 0; number < book->kept_used; number++) free(book_kept(book, number)->levels);
    free(book->kept);
}

#endif
