#include <string.h>

#include "json.h"
#include "tokenizer.h"

#define MAX_FILE_BYTES (64u << 20)
#define MAX_ADDED 1024
#define MAX_TEMPLATE 64
#define MAX_WORD 10000
#define LARGEST_ID 2147483647.0

static umd_status bad(const char *problem)
{
    return umdi_fail(UMD_ERROR_MANIFEST,
                     "the bundle's tokenizer cannot be used by this library: %s; it reads the "
                     "WordPiece tokenizers of BERT",
                     problem);
}

static bool is_type(const umdi_json *object, const char *type)
{
    const umdi_json *value = umdi_json_get(object, "type");
    return value != NULL && value->type == UMDI_STRING && umdi_equal(value->string, type);
}

/* A switch, `absent` where it is not there or null. */
static bool is_on(const umdi_json *object, const char *key, bool absent)
{
    const umdi_json *value = umdi_json_get(object, key);
    if (value == NULL || value->type == UMDI_NULL)
        return absent;
    return value->type == UMDI_TRUE;
}

static bool is_id(const umdi_json *value)
{
    return value != NULL && value->type == UMDI_INTEGER && value->number >= 0 &&
           value->number <= LARGEST_ID;
}

static int compare_tokens(const void *left, const void *right)
{
    const umdi_token *a = left, *b = right;
    return umdi_compare(a->text, b->text);
}

static umd_status copy_token(umdi_arena *arena, umdi_text text, const umdi_json *id,
                             umdi_token *token)
{
    token->text.text = umdi_arena_copy(arena, text.text, text.length);
    token->text.length = text.length;
    token->id = (int64_t)id->number;
    return token->text.text != NULL ? UMD_OK : UMD_ERROR_OUT_OF_MEMORY;
}

static umd_status read_vocabulary(umdi_tokenizer *tokenizer, umdi_arena *arena,
                                  const umdi_json *model)
{
    const umdi_json *vocabulary = umdi_json_get(model, "vocab");
    if (vocabulary == NULL || vocabulary->type != UMDI_OBJECT || vocabulary->count == 0)
        return bad("it has no vocabulary");
    tokenizer->vocabulary = umdi_arena_new(arena, vocabulary->count, sizeof(umdi_token));
    if (tokenizer->vocabulary == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    for (const umdi_json *item = vocabulary->items; item != NULL; item = item->next) {
        if (!is_id(item))
            return bad("a token's number is not one");
        UMDI_TRY(copy_token(arena, item->key, item, &tokenizer->vocabulary[tokenizer->size++]));
    }
    umdi_sort(tokenizer->vocabulary, tokenizer->size, sizeof(umdi_token), compare_tokens);
    return UMD_OK;
}

static const umdi_token *find(const umdi_tokenizer *tokenizer, umdi_text text)
{
    for (size_t i = 0; i < tokenizer->added_count; i++)
        if (umdi_compare(tokenizer->added[i].text, text) == 0)
            return &tokenizer->added[i];
    for (size_t i = 0; i < tokenizer->size; i++)
        if (umdi_compare(tokenizer->vocabulary[i].text, text) == 0)
            return &tokenizer->vocabulary[i];
    return NULL;
}

static umd_status read_model(umdi_tokenizer *tokenizer, umdi_arena *arena, const umdi_json *model)
{
    const umdi_json *unknown = umdi_json_get(model, "unk_token");
    const umdi_json *prefix = umdi_json_get(model, "continuing_subword_prefix");
    const umdi_json *longest = umdi_json_get(model, "max_input_chars_per_word");
    const umdi_token *token;
    if (is_type(model, "BPE"))
        return bad("byte-pair encoding is not supported yet");
    if (!is_type(model, "WordPiece"))
        return bad("its model is of another type");
    UMDI_TRY(read_vocabulary(tokenizer, arena, model));
    if (unknown == NULL || unknown->type != UMDI_STRING ||
        (token = find(tokenizer, unknown->string)) == NULL)
        return bad("its unknown token is not in the vocabulary");
    tokenizer->unknown = token->id;
    if (prefix == NULL || prefix->type != UMDI_STRING)
        return bad("the prefix of a word's later pieces is missing");
    tokenizer->prefix.text = umdi_arena_copy(arena, prefix->string.text, prefix->string.length);
    tokenizer->prefix.length = prefix->string.length;
    if (tokenizer->prefix.text == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    if (!is_id(longest) || longest->number < 1 || longest->number > MAX_WORD)
        return bad("the length of the longest word is missing");
    tokenizer->max_word = (size_t)longest->number;
    return UMD_OK;
}

static umd_status read_added(umdi_tokenizer *tokenizer, umdi_arena *arena, const umdi_json *list)
{
    static const char *const switches[] = {"single_word", "lstrip", "rstrip", "normalized"};
    if (list == NULL || list->type != UMDI_ARRAY || list->count > MAX_ADDED)
        return bad("its added tokens are missing or more than 1024");
    tokenizer->added = umdi_arena_new(arena, list->count, sizeof(umdi_token));
    if (tokenizer->added == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    for (const umdi_json *item = list->items; item != NULL; item = item->next) {
        const umdi_json *content = umdi_json_get(item, "content");
        const umdi_json *id = umdi_json_get(item, "id");
        size_t place = tokenizer->added_count;
        umdi_token token;
        if (content == NULL || content->type != UMDI_STRING || content->string.length == 0 ||
            !is_id(id))
            return bad("an added token has no content or number");
        for (size_t i = 0; i < UMDI_COUNT(switches); i++)
            if (is_on(item, switches[i], true))
                return bad("an added token is matched in a special way");
        UMDI_TRY(copy_token(arena, content->string, id, &token));
        /* The longest first, so that the longest one that fits is found. */
        for (; place > 0 && tokenizer->added[place - 1].text.length < token.text.length; place--)
            tokenizer->added[place] = tokenizer->added[place - 1];
        tokenizer->added[place] = token;
        tokenizer->added_count++;
    }
    return UMD_OK;
}

static umd_status read_normalizer(umdi_tokenizer *tokenizer, const umdi_json *normalizer)
{
    if (!is_type(normalizer, "BertNormalizer"))
        return bad("its normaliser is of another type");
    tokenizer->clean_text = is_on(normalizer, "clean_text", true);
    tokenizer->chinese = is_on(normalizer, "handle_chinese_chars", true);
    tokenizer->lowercase = is_on(normalizer, "lowercase", true);
    tokenizer->strip_accents = is_on(normalizer, "strip_accents", tokenizer->lowercase);
    return UMD_OK;
}

/* Ids of a special token of a template, at the end of `ids`. */
static umd_status add_special(const umdi_json *processor, const umdi_json *piece, int64_t *ids,
                              size_t *count)
{
    const umdi_json *name = umdi_json_get(umdi_json_get(piece, "SpecialToken"), "id");
    const umdi_json *list = NULL;
    if (name != NULL && name->type == UMDI_STRING)
        list = umdi_json_get(
            umdi_json_get(umdi_json_get(processor, "special_tokens"), name->string.text), "ids");
    if (list == NULL || list->type != UMDI_ARRAY)
        return bad("its template names an unknown token");
    for (const umdi_json *item = list->items; item != NULL; item = item->next) {
        if (!is_id(item) || *count == MAX_TEMPLATE)
            return bad("its template holds too many tokens or something else");
        ids[(*count)++] = (int64_t)item->number;
    }
    return UMD_OK;
}

static umd_status read_template(umdi_tokenizer *tokenizer, umdi_arena *arena,
                                const umdi_json *processor)
{
    const umdi_json *single = umdi_json_get(processor, "single"), *sequence;
    bool seen = false;
    if (!is_type(processor, "TemplateProcessing") || single == NULL || single->type != UMDI_ARRAY)
        return bad("its post-processor is not a template");
    tokenizer->head = umdi_arena_new(arena, MAX_TEMPLATE, sizeof(int64_t));
    tokenizer->tail = umdi_arena_new(arena, MAX_TEMPLATE, sizeof(int64_t));
    if (tokenizer->head == NULL || tokenizer->tail == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    for (const umdi_json *item = single->items; item != NULL; item = item->next) {
        sequence = umdi_json_get(item, "Sequence");
        if (sequence == NULL) {
            UMDI_TRY(add_special(processor, item, seen ? tokenizer->tail : tokenizer->head,
                                 seen ? &tokenizer->tail_count : &tokenizer->head_count));
            continue;
        }
        if (seen)
            return bad("its template repeats the text");
        seen = true;
    }
    if (!seen)
        return bad("its template leaves the text out");
    return UMD_OK;
}

static umd_status read_all(umdi_tokenizer *tokenizer, umdi_arena *arena, const umdi_json *top)
{
    if (!is_type(umdi_json_get(top, "pre_tokenizer"), "BertPreTokenizer"))
        return bad("its pre-tokeniser is of another type");
    UMDI_TRY(read_added(tokenizer, arena, umdi_json_get(top, "added_tokens")));
    UMDI_TRY(read_model(tokenizer, arena, umdi_json_get(top, "model")));
    UMDI_TRY(read_normalizer(tokenizer, umdi_json_get(top, "normalizer")));
    UMDI_TRY(read_template(tokenizer, arena, umdi_json_get(top, "post_processor")));
    if (find(tokenizer, umdi_of("[PAD]")) == NULL && find(tokenizer, umdi_of("<pad>")) == NULL)
        return bad("it has no token for padding");
    if (tokenizer->head_count + tokenizer->tail_count >= tokenizer->max_length)
        return bad("its template leaves no room for a text");
    return UMD_OK;
}

umd_status umdi_tokenizer_parse(umdi_tokenizer *tokenizer, umdi_arena *arena, umdi_text source,
                                size_t max_length)
{
    umdi_arena temporary;
    umdi_json *top;
    umd_status status;
    memset(tokenizer, 0, sizeof *tokenizer);
    tokenizer->max_length = max_length;
    if (source.length > MAX_FILE_BYTES)
        return bad("its file has more than 64 MiB");
    umdi_arena_init(&temporary, &arena->allocator);
    status = umdi_json_parse(&temporary, source, UMD_ERROR_MANIFEST, "tokenizer.json", &top);
    if (status == UMD_OK)
        status = read_all(tokenizer, arena, top);
    umdi_arena_free(&temporary);
    return status;
}
