#include "json.h"

#include <math.h>
#include <string.h>

#define MAX_DEPTH 32
#define MAX_NUMBER_CHARACTERS 40
#define MAX_INTEGER 9007199254740992.0 /* 2**53 */

typedef struct parser {
    umdi_arena *arena;
    umdi_text source;
    size_t position;
    const char *problem; /* NULL with a failure: no memory */
} parser;

static bool fail(parser *p, const char *problem)
{
    p->problem = problem;
    return false;
}

static bool more(const parser *p)
{
    return p->position < p->source.length;
}

static char peek(const parser *p)
{
    return more(p) ? p->source.text[p->position] : '\0';
}

static void skip_space(parser *p)
{
    while (more(p) && strchr(" \t\n\r", peek(p)) != NULL && peek(p) != '\0')
        p->position++;
}

static bool take(parser *p, char wanted)
{
    if (!more(p) || peek(p) != wanted)
        return false;
    p->position++;
    return true;
}

static bool take_word(parser *p, const char *word)
{
    size_t length = strlen(word);
    if (p->source.length - p->position < length ||
        memcmp(p->source.text + p->position, word, length) != 0)
        return fail(p, "not JSON");
    p->position += length;
    return true;
}

static bool take_hex(parser *p, uint32_t *value)
{
    *value = 0;
    for (int i = 0; i < 4; i++) {
        char digit = peek(p);
        uint32_t number;
        if (digit >= '0' && digit <= '9')
            number = (uint32_t)(digit - '0');
        else if ((digit | 32) >= 'a' && (digit | 32) <= 'f')
            number = (uint32_t)((digit | 32) - 'a' + 10);
        else
            return fail(p, "a bad \\u escape");
        *value = *value << 4 | number;
        p->position++;
    }
    return true;
}

static char *put_character(char *end, uint32_t character)
{
    if (character < 0x80) {
        *end++ = (char)character;
    } else if (character < 0x800) {
        *end++ = (char)(0xC0 | character >> 6);
        *end++ = (char)(0x80 | (character & 0x3F));
    } else if (character < 0x10000) {
        *end++ = (char)(0xE0 | character >> 12);
        *end++ = (char)(0x80 | (character >> 6 & 0x3F));
        *end++ = (char)(0x80 | (character & 0x3F));
    } else {
        *end++ = (char)(0xF0 | character >> 18);
        *end++ = (char)(0x80 | (character >> 12 & 0x3F));
        *end++ = (char)(0x80 | (character >> 6 & 0x3F));
        *end++ = (char)(0x80 | (character & 0x3F));
    }
    return end;
}

static bool take_escape(parser *p, char **end)
{
    static const char codes[] = "\"\\/bfnrt", meanings[] = "\"\\/\b\f\n\r\t";
    char code = peek(p);
    const char *found = code == '\0' ? NULL : strchr(codes, code);
    uint32_t character, second;
    p->position++;
    if (found != NULL) {
        *(*end)++ = meanings[found - codes];
        return true;
    }
    if (code != 'u')
        return fail(p, "an unknown escape in a string");
    if (!take_hex(p, &character))
        return false;
    if (character >= 0xD800 && character <= 0xDBFF) {
        if (!take(p, '\\') || !take(p, 'u') || !take_hex(p, &second) || second < 0xDC00 ||
            second > 0xDFFF)
            return fail(p, "a lone surrogate in a string");
        character = 0x10000 + ((character - 0xD800) << 10) + (second - 0xDC00);
    } else if (character >= 0xDC00 && character <= 0xDFFF) {
        return fail(p, "a lone surrogate in a string");
    }
    if (character == 0)
        return fail(p, "a NUL in a string");
    *end = put_character(*end, character);
    return true;
}

static bool take_string(parser *p, umdi_text *out)
{
    size_t start, length;
    char *text, *end;
    if (!take(p, '"'))
        return fail(p, "not JSON");
    start = p->position;
    while (more(p) && peek(p) != '"')
        p->position += peek(p) == '\\' ? 2 : 1;
    if (!more(p))
        return fail(p, "a string without an end");
    length = p->position - start;
    p->position = start;
    /* No escape is shorter than what it stands for. */
    text = end = umdi_arena_new(p->arena, length + 1, 1);
    if (text == NULL)
        return false;
    while (peek(p) != '"') {
        if ((unsigned char)peek(p) < 0x20)
            return fail(p, "a control character in a string");
        if (peek(p) != '\\') {
            *end++ = p->source.text[p->position++];
            continue;
        }
        p->position++;
        if (!take_escape(p, &end))
            return false;
    }
    p->position++;
    out->text = text;
    out->length = (size_t)(end - text);
    return true;
}

static size_t take_digits(parser *p)
{
    size_t count = 0;
    for (; peek(p) >= '0' && peek(p) <= '9'; count++)
        p->position++;
    return count;
}

static bool take_number(parser *p, umdi_json *value)
{
    size_t start = p->position;
    umdi_text text;
    value->type = UMDI_INTEGER;
    take(p, '-');
    if (peek(p) == '0')
        p->position++;
    else if (take_digits(p) == 0)
        return fail(p, "not JSON");
    if (take(p, '.')) {
        value->type = UMDI_REAL;
        if (take_digits(p) == 0)
            return fail(p, "a number without digits behind its point");
    }
    if (peek(p) == 'e' || peek(p) == 'E') {
        value->type = UMDI_REAL;
        p->position++;
        if (peek(p) == '+' || peek(p) == '-')
            p->position++;
        if (take_digits(p) == 0)
            return fail(p, "a number without an exponent");
    }
    text.text = p->source.text + start;
    text.length = p->position - start;
    if (text.length > MAX_NUMBER_CHARACTERS)
        return fail(p, "a number that is too long or too large");
    value->number = umdi_parse_double(text);
    /* 2**53 + 1 would round to 2**53; no integer of 16 digits is written in another way. */
    if (value->type == UMDI_INTEGER &&
        (fabs(value->number) > MAX_INTEGER ||
         (fabs(value->number) == MAX_INTEGER && text.text[text.length - 1] != '2')))
        return fail(p, "an integer outside -2**53..2**53");
    if (!isfinite(value->number))
        return fail(p, "a number that is too long or too large");
    return true;
}

static int compare_keys(const void *left, const void *right)
{
    const umdi_json *const *a = left, *const *b = right;
    return umdi_compare((*a)->key, (*b)->key);
}

/* Whether all keys differ. Sorted, since a hostile file may have a million of them. */
static bool check_keys(parser *p, const umdi_json *object)
{
    const umdi_json **sorted, *item = object->items;
    bool differ = true;
    if (object->count < 2)
        return true;
    sorted = umdi_new(&p->arena->allocator, object->count, sizeof *sorted);
    if (sorted == NULL)
        return false;
    for (size_t i = 0; i < object->count; i++, item = item->next)
        sorted[i] = item;
    umdi_sort(sorted, object->count, sizeof *sorted, compare_keys);
    for (size_t i = 1; i < object->count; i++)
        differ = differ && compare_keys(&sorted[i - 1], &sorted[i]) != 0;
    umdi_delete(&p->arena->allocator, sorted);
    return differ || fail(p, "the same key stands twice in one object");
}

static bool take_value(parser *p, umdi_json *value, int depth);

/* The items of an array or object, up to and with the closing bracket. */
static bool take_items(parser *p, umdi_json *parent, int depth, char close)
{
    umdi_json **link = &parent->items;
    if (depth > MAX_DEPTH)
        return fail(p, "nested deeper than 32 levels");
    p->position++;
    skip_space(p);
    if (take(p, close))
        return true;
    for (;;) {
        umdi_json *item = umdi_arena_new(p->arena, 1, sizeof *item);
        if (item == NULL)
            return false;
        if (parent->type == UMDI_OBJECT) {
            skip_space(p);
            if (!take_string(p, &item->key))
                return false;
            skip_space(p);
            if (!take(p, ':'))
                return fail(p, "not JSON");
        }
        if (!take_value(p, item, depth))
            return false;
        *link = item;
        link = &item->next;
        parent->count++;
        skip_space(p);
        if (take(p, close))
            return parent->type == UMDI_ARRAY || check_keys(p, parent);
        if (!take(p, ','))
            return fail(p, "not JSON");
    }
}

static bool take_value(parser *p, umdi_json *value, int depth)
{
    skip_space(p);
    switch (peek(p)) {
    case '{':
        value->type = UMDI_OBJECT;
        return take_items(p, value, depth + 1, '}');
    case '[':
        value->type = UMDI_ARRAY;
        return take_items(p, value, depth + 1, ']');
    case '"':
        value->type = UMDI_STRING;
        return take_string(p, &value->string);
    case 't':
        value->type = UMDI_TRUE;
        return take_word(p, "true");
    case 'f':
        value->type = UMDI_FALSE;
        return take_word(p, "false");
    case 'n':
        value->type = UMDI_NULL;
        return take_word(p, "null");
    default:
        return take_number(p, value);
    }
}

umd_status umdi_json_parse(umdi_arena *arena, umdi_text source, umd_status status, const char *name,
                           umdi_json **out)
{
    parser p = {arena, source, 0, NULL};
    umdi_json *value = umdi_arena_new(arena, 1, sizeof *value);
    bool done = false;
    *out = NULL;
    if (value == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    if (umdi_characters(source) == SIZE_MAX) {
        fail(&p, "not UTF-8");
    } else if (take_value(&p, value, 0)) {
        skip_space(&p);
        done = !more(&p) || fail(&p, "something follows the JSON value");
    }
    if (!done && p.problem == NULL)
        return umdi_no_memory();
    if (!done)
        return umdi_fail(status, "%s: not readable as strict JSON: %s (at byte %zu)", name,
                         p.problem, p.position);
    *out = value;
    return UMD_OK;
}

const umdi_json *umdi_json_get(const umdi_json *object, const char *key)
{
    if (object == NULL || object->type != UMDI_OBJECT)
        return NULL;
    for (const umdi_json *item = object->items; item != NULL; item = item->next)
        if (umdi_equal(item->key, key))
            return item;
    return NULL;
}
