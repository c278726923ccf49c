/* Errors, memory and UTF-8: what every other file uses. Names of this library begin with `umdi_`
 * where they are not public, so that the static library can be linked anywhere. */
#ifndef UMDI_BASE_H
#define UMDI_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "umd_edge.h"

#define UMDI_COUNT(array) (sizeof(array) / sizeof((array)[0]))

#if defined(__GNUC__)
#define UMDI_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define UMDI_PRINTF(text, first)
#endif

/* Go on, or give the status of a failed step back. */
#define UMDI_TRY(expression)                                                                       \
    do {                                                                                           \
        umd_status umdi_try_status = (expression);                                                 \
        if (umdi_try_status != UMD_OK)                                                             \
            return umdi_try_status;                                                                \
    } while (0)

/* Store the text that umd_last_error gives in this thread, and give `status` back. */
umd_status umdi_fail(umd_status status, const char *format, ...) UMDI_PRINTF(2, 3);
umd_status umdi_no_memory(void);
umd_status umdi_missing(const char *what);

/* Copy a caller's struct of `given` bytes into one of `size`: what an older caller lacks is zero,
 * what a newer one has beyond must be zero. Both begin with `struct_size`. */
umd_status umdi_take(void *target, size_t size, const void *source, const char *name);

/* Fill a caller's struct of its own `struct_size` from one of `size` bytes. */
umd_status umdi_give(void *target, void *source, size_t size, const char *name);

/* ---- memory ---- */

umd_allocator umdi_allocator(const umd_allocator *given);

/* Zeroed memory, or NULL with the error set; `count * size` may overflow. */
void *umdi_new(const umd_allocator *allocator, size_t count, size_t size);
void umdi_delete(const umd_allocator *allocator, void *memory);

typedef struct umdi_block umdi_block;

/* Memory that is given back all at once. */
typedef struct umdi_arena {
    umd_allocator allocator;
    umdi_block *blocks;
} umdi_arena;

void umdi_arena_init(umdi_arena *arena, const umd_allocator *allocator);
void *umdi_arena_new(umdi_arena *arena, size_t count, size_t size);
/* A copy with a NUL behind it. */
char *umdi_arena_copy(umdi_arena *arena, const char *text, size_t length);
void umdi_arena_free(umdi_arena *arena);

/* ---- text ---- */

/* A piece of memory; `text` of the library's own strings has a NUL behind it. */
typedef struct umdi_text {
    const char *text;
    size_t length;
} umdi_text;

umdi_text umdi_of(const char *text);
bool umdi_equal(umdi_text text, const char *other);
/* Below, equal to or above 0, by bytes. */
int umdi_compare(umdi_text a, umdi_text b);

/* Sort in place and without recursion or memory, whatever a hostile file holds. An item has at most
 * UMDI_SORT_BYTES. */
#define UMDI_SORT_BYTES 64
void umdi_sort(void *items, size_t count, size_t size,
               int (*compare)(const void *left, const void *right));

/* Decode the character at `*position` and move on. False: not UTF-8 (overlong forms and surrogates
 * included). */
bool umdi_next_character(umdi_text text, size_t *position, uint32_t *character);

/* Without white space at both ends, as Python's str.strip does. The text must be UTF-8. */
umdi_text umdi_strip(umdi_text text);

/* Number of characters, or SIZE_MAX where it is not UTF-8. */
size_t umdi_characters(umdi_text text);

/* Whether two texts are equal but for upper and lower case. */
bool umdi_equal_folded(umdi_text a, umdi_text b);

/* The number that a JSON number stands for, whatever the locale. The text must be a number. */
double umdi_parse_double(umdi_text text);

#endif
