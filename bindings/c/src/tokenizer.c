#include "tokenizer.h"

#include <string.h>

#include "unicode.h"

#define DOTTED_CAPITAL_I 0x130
#define COMBINING_DOT 0x307
#define REPLACEMENT 0xFFFD
#define MAX_BYTES 4 /* of one character */

typedef struct writer {
    const umdi_tokenizer *tokenizer;
    int64_t *ids;
    size_t count;
    size_t room;
    char *word; /* the one being put together */
    size_t word_bytes;
    size_t word_characters;
    size_t word_room;
} writer;

static const umdi_token *find(const umdi_tokenizer *tokenizer, umdi_text text)
{
    size_t low = 0, high = tokenizer->size;
    while (low < high) {
        size_t middle = (low + high) / 2;
        int order = umdi_compare(tokenizer->vocabulary[middle].text, text);
        if (order == 0)
            return &tokenizer->vocabulary[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

static void put(writer *w, int64_t id)
{
    if (w->count < w->room)
        w->ids[w->count++] = id;
}

/* The longest piece of the vocabulary at the start of `rest`, which stands behind `prefix` bytes of
 * free room where it is not the word's first. */
static const umdi_token *longest_piece(const umdi_tokenizer *tokenizer, char *rest, size_t length,
                                       bool is_first)
{
    umdi_text piece = {rest, length};
    if (!is_first) {
        piece.text = rest - tokenizer->prefix.length;
        piece.length += tokenizer->prefix.length;
        memcpy(rest - tokenizer->prefix.length, tokenizer->prefix.text, tokenizer->prefix.length);
    }
    for (; length > 0; length--, piece.length--) {
        const umdi_token *token;
        if (length > 1 && ((unsigned char)rest[length] & 0xC0) == 0x80)
            continue; /* not between two characters */
        token = find(tokenizer, piece);
        if (token != NULL)
            return token;
    }
    return NULL;
}

/* The pieces of the word that has been put together; nothing where there is none. */
static void end_word(writer *w)
{
    const umdi_tokenizer *tokenizer = w->tokenizer;
    size_t start = 0, first = w->count;
    /* In front of the word there is room for the prefix of its pieces. */
    char *word = w->word + tokenizer->prefix.length;
    if (w->word_bytes == 0)
        return;
    if (w->word_characters > tokenizer->max_word) {
        put(w, tokenizer->unknown);
    } else {
        word[w->word_bytes] = '\0';
        while (start < w->word_bytes) {
            const umdi_token *token =
                longest_piece(tokenizer, word + start, w->word_bytes - start, start == 0);
            if (token == NULL) {
                w->count = first;
                put(w, tokenizer->unknown);
                break;
            }
            put(w, token->id);
            start += token->text.length - (start == 0 ? 0 : tokenizer->prefix.length);
        }
    }
    w->word_bytes = w->word_characters = 0;
}

static void add_character(writer *w, uint32_t character)
{
    char *end = w->word + w->tokenizer->prefix.length + w->word_bytes;
    w->word_characters++;
    if (w->word_characters > w->tokenizer->max_word)
        return; /* too long already: unknown, whatever follows */
    if (character < 0x80) {
        *end++ = (char)character;
    } else {
        int more = character < 0x800 ? 1 : character < 0x10000 ? 2 : 3;
        static const unsigned char marks[] = {0, 0xC0, 0xE0, 0xF0};
        *end++ = (char)(marks[more] | character >> 6 * more);
        while (more-- > 0)
            *end++ = (char)(0x80 | (character >> 6 * more & 0x3F));
    }
    w->word_bytes = (size_t)(end - w->word) - w->tokenizer->prefix.length;
}

/* One character after normalisation: white space ends a word, punctuation is one of its own. */
static void add_normalised(writer *w, uint32_t character)
{
    if (umdi_is_space(character)) {
        end_word(w);
    } else if (umdi_is_punctuation(character)) {
        end_word(w);
        add_character(w, character);
        end_word(w);
    } else {
        add_character(w, character);
    }
}

static void add_lowered(writer *w, uint32_t character)
{
    if (!w->tokenizer->lowercase) {
        add_normalised(w, character);
        return;
    }
    add_normalised(w, umdi_lower(character));
    if (character == DOTTED_CAPITAL_I)
        add_normalised(w, COMBINING_DOT);
}

/* One character of the text, in the order of BertNormalizer: clean, Chinese, accents, case. */
static umd_status add_raw(writer *w, uint32_t character)
{
    const umdi_tokenizer *tokenizer = w->tokenizer;
    bool apart = tokenizer->chinese && umdi_is_chinese(character);
    uint32_t parts[UMDI_MAX_DECOMPOSITION] = {character};
    size_t count = 1;
    if (umdi_is_unsettled(character))
        return umdi_fail(UMD_ERROR_TEXT_INPUT,
                         "the text has the character U+%04X, whose tokens this library cannot tell "
                         "for sure; leave it out",
                         (unsigned)character);
    if (tokenizer->clean_text &&
        (character == 0 || character == REPLACEMENT || umdi_is_control(character)))
        return UMD_OK;
    if (tokenizer->strip_accents)
        count = umdi_strip_accents(character, parts);
    if (apart)
        end_word(w);
    for (size_t i = 0; i < count; i++)
        add_lowered(w, parts[i]);
    if (apart)
        end_word(w);
    return UMD_OK;
}

/* The added token that stands at `position`, or NULL. */
static const umdi_token *added_at(const umdi_tokenizer *tokenizer, umdi_text text, size_t position)
{
    for (size_t i = 0; i < tokenizer->added_count; i++) {
        umdi_text added = tokenizer->added[i].text;
        if (added.length <= text.length - position &&
            memcmp(text.text + position, added.text, added.length) == 0)
            return &tokenizer->added[i];
    }
    return NULL;
}

umd_status umdi_check_text(umdi_text text, const char *what)
{
    size_t characters = umdi_characters(text);
    if (characters == SIZE_MAX)
        return umdi_fail(UMD_ERROR_TEXT_INPUT, "the %s is not UTF-8; convert it", what);
    if (umdi_strip(text).length == 0)
        return umdi_fail(UMD_ERROR_TEXT_INPUT, "the %s is empty; write it or leave it out", what);
    if (characters > UMDI_MAX_CHARACTERS)
        return umdi_fail(UMD_ERROR_TEXT_INPUT,
                         "the %s has %zu characters; at most %d are allowed", what, characters,
                         UMDI_MAX_CHARACTERS);
    return UMD_OK;
}

umd_status umdi_tokenize(const umdi_tokenizer *tokenizer, const umd_allocator *allocator,
                         umdi_text text, int64_t *ids, size_t *count)
{
    writer w = {tokenizer, ids + tokenizer->head_count, 0, 0, NULL, 0, 0, 0};
    umd_status status = UMD_OK;
    size_t position = 0;
    w.room = tokenizer->max_length - tokenizer->head_count - tokenizer->tail_count;
    w.word = umdi_new(allocator, tokenizer->prefix.length + tokenizer->max_word * MAX_BYTES + 1, 1);
    if (w.word == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    while (position < text.length && status == UMD_OK) {
        const umdi_token *added = added_at(tokenizer, text, position);
        uint32_t character;
        if (added != NULL) {
            end_word(&w);
            put(&w, added->id);
            position += added->text.length;
        } else if (umdi_next_character(text, &position, &character)) {
            status = add_raw(&w, character);
        } else {
            status = umdi_fail(UMD_ERROR_TEXT_INPUT, "the text is not UTF-8; convert it");
        }
    }
    end_word(&w);
    umdi_delete(allocator, w.word);
    memcpy(ids, tokenizer->head, tokenizer->head_count * sizeof *ids);
    memcpy(w.ids + w.count, tokenizer->tail, tokenizer->tail_count * sizeof *ids);
    *count = tokenizer->head_count + w.count + tokenizer->tail_count;
    return status;
}
