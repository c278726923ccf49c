/* Structured values as numbers with a mask of what is there; see `umd_edge/_structured.py`. */
#include <math.h>
#include <string.h>

#include "predictor.h"

/* What float32 holds with room to spare; no measurement lies this many deviations off. */
#define LARGEST 1e30

umd_status umdi_values_init(const umd_predictor *predictor, umdi_values *values)
{
    size_t count = predictor->manifest.field_count;
    const int64_t shape[2] = {1, (int64_t)count};
    memset(values, 0, sizeof *values);
    values->numbers = umdi_new(&predictor->allocator, count, sizeof(float));
    values->mask = umdi_new(&predictor->allocator, count, sizeof(float));
    if (values->numbers == NULL || values->mask == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    UMDI_TRY(umdi_tensor_wrap(&predictor->runtime, values->numbers, count * sizeof(float), shape, 2,
                              UMDI_ORT_FLOAT, &values->numbers_value));
    return umdi_tensor_wrap(&predictor->runtime, values->mask, count * sizeof(float), shape, 2,
                            UMDI_ORT_FLOAT, &values->mask_value);
}

void umdi_values_free(const umd_predictor *predictor, umdi_values *values)
{
    umdi_value_free(&predictor->runtime, &values->numbers_value);
    umdi_value_free(&predictor->runtime, &values->mask_value);
    umdi_delete(&predictor->allocator, values->numbers);
    umdi_delete(&predictor->allocator, values->mask);
}

static umdi_text last_part(umdi_text path)
{
    size_t start = path.length;
    while (start > 0 && path.text[start - 1] != '.')
        start--;
    umdi_text last = {path.text + start, path.length - start};
    return last;
}

/* Index by full path, or by the last part where that is unique; field_count where there is none. */
static size_t find_field(const umdi_manifest *manifest, const char *name)
{
    size_t found = manifest->field_count, count = 0;
    for (size_t i = 0; i < manifest->field_count; i++)
        if (umdi_equal(manifest->fields[i].name, name))
            return i;
    for (size_t i = 0; i < manifest->field_count; i++)
        if (umdi_equal(last_part(manifest->fields[i].name), name)) {
            found = i;
            count++;
        }
    return count == 1 ? found : manifest->field_count;
}

static umd_status encode(const umdi_field *field, const umd_value *value, double *number)
{
    const char *name = field->name.text;
    umdi_text text;
    if ((value->text != NULL) != (field->kind == UMDI_CATEGORICAL))
        return umdi_fail(UMD_ERROR_STRUCTURED_INPUT, "%s: a %s is needed", name,
                         field->kind == UMDI_CATEGORICAL ? "text" : "number");
    if (field->kind == UMDI_BINARY) {
        if (value->number != 0 && value->number != 1)
            return umdi_fail(UMD_ERROR_STRUCTURED_INPUT, "%s: 0 or 1 is needed", name);
        *number = value->number;
        return UMD_OK;
    }
    if (field->kind == UMDI_NUMERIC) {
        if (!isfinite(value->number))
            return umdi_fail(UMD_ERROR_STRUCTURED_INPUT, "%s: a finite number%s%s is needed", name,
                             field->unit.length != 0 ? " in " : "", field->unit.text);
        *number = (value->number - field->mean) / field->std;
        if (fabs(*number) > LARGEST)
            return umdi_fail(UMD_ERROR_STRUCTURED_INPUT,
                             "%s: the number is beyond any real value", name);
        return UMD_OK;
    }
    text = umdi_strip(umdi_of(value->text));
    for (size_t i = 0; i < field->category_count; i++)
        if (umdi_equal_folded(field->categories[i], text)) {
            *number = (double)i;
            return UMD_OK;
        }
    return umdi_fail(UMD_ERROR_STRUCTURED_INPUT,
                     "%s: unknown category; '%s' is one of the %zu that are allowed", name,
                     field->categories[0].text, field->category_count);
}

umd_status umdi_values_fill(const umd_predictor *predictor, const umdi_task *task,
                            const umd_value *given, size_t count, umdi_values *values)
{
    const umdi_manifest *manifest = &predictor->manifest;
    for (size_t i = 0; i < count; i++) {
        size_t index;
        double number = 0;
        if (given == NULL || given[i].name == NULL)
            return umdi_fail(UMD_ERROR_USAGE, "value number %zu has no name", i);
        index = find_field(manifest, given[i].name);
        if (index == manifest->field_count || !task->reads_field[index])
            return umdi_fail(UMD_ERROR_STRUCTURED_INPUT,
                             "structured value '%.60s' is not read by task '%s'; leave it out",
                             given[i].name, task->name.text);
        UMDI_TRY(encode(&manifest->fields[index], &given[i], &number));
        values->numbers[index] = (float)number;
        values->mask[index] = 1.0f;
    }
    return UMD_OK;
}
