/* Readers of single values of the manifest; each error says where and what is needed. */
#ifndef UMDI_FIELDS_H
#define UMDI_FIELDS_H

#include "json.h"

#define UMDI_MAX_PATH 96

umd_status umdi_bad_field(const char *path, const char *problem);

/* An object with exactly the `needed` keys and any of the `optional` ones; lists end with NULL. */
umd_status umdi_check_object(const umdi_json *value, const char *path, const char *const *needed,
                             const char *const *optional);

umd_status umdi_read_text(const umdi_json *value, const char *path, umdi_text *out);
/* The same, and it may not be blank. */
umd_status umdi_read_filled(const umdi_json *value, const char *path, umdi_text *out);
umd_status umdi_read_texts(umdi_arena *arena, const umdi_json *value, const char *path,
                           umdi_text **out, size_t *count);
umd_status umdi_read_integer(const umdi_json *value, const char *path, double low, double high,
                             int64_t *out);
umd_status umdi_read_number(const umdi_json *value, const char *path, double *out);
umd_status umdi_read_path(const umdi_json *value, const char *path, umdi_text *out);
umd_status umdi_read_numbers(const umdi_json *value, const char *path);
umd_status umdi_check_type(const umdi_json *value, const char *path, enum umdi_json_type type);

bool umdi_is_name(umdi_text text);
bool umdi_is_version(umdi_text text);
bool umdi_is_date(umdi_text text);
bool umdi_is_sha256(umdi_text text);

#endif
