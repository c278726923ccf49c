/* What a bundle and a result say, and the structs that carry it. */
#include <stdio.h>
#include <string.h>

#include "predictor.h"

#define DEFINE_INIT(type)                                                                          \
    void type##_init(type *target, size_t size)                                                    \
    {                                                                                              \
        if (target == NULL || size < sizeof(uint32_t))                                             \
            return;                                                                                \
        memset(target, 0, size);                                                                   \
        target->struct_size = (uint32_t)size;                                                      \
    }

DEFINE_INIT(umd_open_options)
DEFINE_INIT(umd_description)
DEFINE_INIT(umd_task)
DEFINE_INIT(umd_call)
DEFINE_INIT(umd_pixels)
DEFINE_INIT(umd_result_info)
DEFINE_INIT(umd_item)
DEFINE_INIT(umd_set)
DEFINE_INIT(umd_classify_options)
DEFINE_INIT(umd_selftest_report)

static umd_status no_predictor(void)
{
    return umdi_fail(UMD_ERROR_USAGE, "the predictor is NULL; open a bundle first");
}

umd_status umd_describe(umd_predictor *predictor, umd_description *description)
{
    umd_description facts;
    const umdi_manifest *manifest;
    if (predictor == NULL)
        return no_predictor();
    manifest = &predictor->manifest;
    memset(&facts, 0, sizeof facts);
    facts.task_count = (uint32_t)manifest->task_count;
    facts.name = manifest->name.text;
    facts.version = manifest->version.text;
    facts.sha256 = predictor->sha256;
    facts.statement = manifest->statement.text;
    facts.variant = predictor->variant->name.text;
    facts.int8_path = predictor->int8_path;
    facts.onnxruntime = predictor->runtime.ort.version;
    facts.height = manifest->preprocessing.height;
    facts.width = manifest->preprocessing.width;
    facts.channels = manifest->preprocessing.channels;
    facts.max_length = manifest->max_length;
    facts.manifest = predictor->manifest_text.text;
    facts.manifest_size = predictor->manifest_text.length;
    facts.signature = predictor->signature;
    facts.provider = umdi_provider_name(predictor->runtime.options.provider);
    facts.embedding_size = atomic_load(&predictor->embedding_size);
    return umdi_give(description, &facts, sizeof facts, "umd_description");
}

static umd_status check_task(const umd_predictor *predictor, uint32_t index)
{
    if (predictor == NULL)
        return no_predictor();
    if (index >= predictor->manifest.task_count)
        return umdi_fail(UMD_ERROR_UNKNOWN_TASK, "task number %u given; the bundle has %zu", index,
                         predictor->manifest.task_count);
    return UMD_OK;
}

umd_status umd_get_task(umd_predictor *predictor, uint32_t index, umd_task *task)
{
    umd_task facts;
    const umdi_task *found;
    UMDI_TRY(check_task(predictor, index));
    found = &predictor->manifest.tasks[index];
    memset(&facts, 0, sizeof facts);
    facts.kind = found->kind;
    facts.name = found->name.text;
    facts.prompt = found->prompt.text;
    facts.output_count = (uint32_t)found->outputs.count;
    facts.multi_label = found->multi_label;
    facts.reads_text = found->reads_text;
    facts.reads_values = found->field_count;
    return umdi_give(task, &facts, sizeof facts, "umd_task");
}

umd_status umd_get_output(umd_predictor *predictor, uint32_t task, uint32_t output,
                          const char **name)
{
    const umdi_task *found;
    UMDI_TRY(check_task(predictor, task));
    found = &predictor->manifest.tasks[task];
    if (name == NULL || output >= found->outputs.count)
        return umdi_fail(UMD_ERROR_USAGE, "output number %u given; task '%s' has %zu", output,
                         found->name.text, found->outputs.count);
    *name = found->outputs.items[output].text;
    return UMD_OK;
}

umd_status umdi_find_task(const umd_predictor *predictor, const char *name, int32_t kind,
                          const umdi_task **out)
{
    static const char *const kinds[] = {"", "classification", "question-answering", "retrieval"};
    const umdi_manifest *manifest = &predictor->manifest;
    size_t count = 0;
    for (size_t i = 0; i < manifest->task_count; i++) {
        const umdi_task *task = &manifest->tasks[i];
        if (task->kind != kind || (name != NULL && !umdi_equal(task->name, name)))
            continue;
        count++;
        *out = task;
    }
    if (count == 1)
        return UMD_OK;
    if (name == NULL)
        return umdi_fail(UMD_ERROR_UNKNOWN_TASK,
                         "no task named; the bundle has %zu %s tasks, and the name may be left out "
                         "where there is one",
                         count, kinds[kind]);
    return umdi_fail(UMD_ERROR_UNKNOWN_TASK,
                     "task '%.60s' given; the bundle has no %s task of that name", name,
                     kinds[kind]);
}
