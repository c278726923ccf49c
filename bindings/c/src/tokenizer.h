/* Text to `input_ids`: the WordPiece tokenizer of BERT, as the `tokenizers` library runs it. */
#ifndef UMDI_TOKENIZER_H
#define UMDI_TOKENIZER_H

#include "base.h"

#define UMDI_MAX_CHARACTERS 10000

typedef struct umdi_token {
    umdi_text text;
    int64_t id;
} umdi_token;

typedef struct umdi_tokenizer {
    umdi_token *vocabulary; /* sorted */
    size_t size;
    umdi_token *added; /* found in the raw text before anything else, the longest first */
    size_t added_count;
    umdi_text prefix; /* of a word's later pieces */
    int64_t unknown;
    size_t max_word; /* characters; longer words are unknown */
    bool clean_text;
    bool chinese;
    bool strip_accents;
    bool lowercase;
    int64_t *head; /* tokens before and behind the text */
    size_t head_count;
    int64_t *tail;
    size_t tail_count;
    size_t max_length;
} umdi_tokenizer;

/* Read a `tokenizer.json`; what stays lies in the arena. Fails with MANIFEST where it is damaged or
 * of another kind. */
umd_status umdi_tokenizer_parse(umdi_tokenizer *tokenizer, umdi_arena *arena, umdi_text source,
                                size_t max_length);

/* At most `max_length` ids of a text that is UTF-8. Fails with TEXT_INPUT. */
umd_status umdi_tokenize(const umdi_tokenizer *tokenizer, const umd_allocator *allocator,
                         umdi_text text, int64_t *ids, size_t *count);

/* A text from a caller: UTF-8, not blank, not too long. */
umd_status umdi_check_text(umdi_text text, const char *what);

#endif
