/* Reading the tasks and structured fields of a manifest. */
#ifndef UMDI_TASK_H
#define UMDI_TASK_H

#include "manifest.h"

umd_status umdi_field_parse(umdi_arena *arena, const umdi_json *value, const char *path,
                            umdi_field *field);

/* `manifest` already has its structured fields. */
umd_status umdi_task_parse(umdi_arena *arena, const umdi_json *value, const char *path,
                           const umdi_manifest *manifest, umdi_task *task);

#endif
