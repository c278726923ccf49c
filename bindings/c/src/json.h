/* Strict JSON, as `umd_edge/_json.py` reads it: duplicate keys, deep nesting, huge integers, lone
 * surrogates and anything that is not UTF-8 are refused. Beyond that, a NUL in a string is. */
#ifndef UMDI_JSON_H
#define UMDI_JSON_H

#include "base.h"

enum umdi_json_type {
    UMDI_NULL,
    UMDI_FALSE,
    UMDI_TRUE,
    UMDI_INTEGER,
    UMDI_REAL,
    UMDI_STRING,
    UMDI_ARRAY,
    UMDI_OBJECT
};

typedef struct umdi_json umdi_json;

struct umdi_json {
    enum umdi_json_type type;
    umdi_text key;    /* of a member of an object */
    umdi_text string; /* of a string */
    double number;    /* of an integer, within 2**53, or a real */
    size_t count;     /* of items */
    umdi_json *items; /* the first one */
    umdi_json *next;  /* the next item of the parent */
};

/* Parse; everything lies in the arena. Fails with `status`; the message begins with `name`. */
umd_status umdi_json_parse(umdi_arena *arena, umdi_text source, umd_status status, const char *name,
                           umdi_json **out);

/* Member of an object, or NULL. */
const umdi_json *umdi_json_get(const umdi_json *object, const char *key);

#endif
