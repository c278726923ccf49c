/* What is loaded, and the objects made with it. Everything but the cache of texts and the size of
 * an embedding stays as it is once umd_open has returned, so that threads need no lock. */
#ifndef UMDI_PREDICTOR_H
#define UMDI_PREDICTOR_H

#include "container.h"
#include "graph.h"
#include "sha256.h"
#include "tokenizer.h"

#define UMDI_CACHED_TEXTS 64
#define UMDI_REASON_BYTES 256

/* A text after the text encoder; counted, since cache and calls share it. */
typedef struct umdi_features {
    atomic_size_t users;
    int64_t *ids;
    int64_t *mask;
    size_t length;
    OrtValue *ids_value;
    OrtValue *mask_value;
    umdi_tensor tokens;
    umdi_tensor embedding;
} umdi_features;

typedef struct umdi_cached {
    char *text;
    size_t length;
    uint64_t mark; /* of the text */
    uint64_t used; /* when, in steps of the cache */
    umdi_features *features;
} umdi_cached;

/* Structured values of one sample. */
typedef struct umdi_values {
    float *numbers;
    float *mask;
    OrtValue *numbers_value;
    OrtValue *mask_value;
} umdi_values;

struct umd_predictor {
    atomic_size_t users;
    umd_allocator allocator;
    umdi_arena arena;
    umdi_container container;
    umdi_manifest manifest;
    umdi_text manifest_text;
    char sha256[UMDI_SHA256_HEX];
    int32_t signature; /* UMD_UNSIGNED, ... */
    const umdi_variant *variant;
    const char *int8_path;
    umdi_tokenizer tokenizer;
    umdi_runtime runtime;
    umdi_graph graphs[UMDI_PARTS];
    umdi_ood_model *ood; /* one for each task; NULL: no task has any */
    umdi_values no_values; /* nothing is known */
    atomic_size_t embedding_size;
    pthread_mutex_t lock; /* of the cache */
    bool has_lock;
    uint64_t step;
    umdi_cached cache[UMDI_CACHED_TEXTS];
    umd_log_function log;
    void *log_context;
};

struct umd_image {
    umd_predictor *predictor;
    umdi_tensor tokens;
    umdi_tensor embedding;
    umdi_ood_score *ood_scores; /* one for each task; NULL: no task has any */
    char *facts[UMDI_FACTS]; /* NULL: not given */
};

/* ---- load.c ---- */

/* Read and open everything behind an opened container. Fails as umd_open does; umdi_release gives
 * back what is there then. */
umd_status umdi_load(umd_predictor *predictor, const umd_open_options *options);

/* ---- predictor.c ---- */

void umdi_log(const umd_predictor *predictor, int32_t level, const char *message);
void umdi_release(umd_predictor *predictor);

/* Bytes of a listed file after its size and hash were compared; to be released with umdi_delete. */
umd_status umdi_read_file(const umd_predictor *predictor, umdi_text name, uint8_t **bytes,
                          size_t *size);

/* ---- texts.c ---- */

/* Prompt and text, stripped, with one space between; to be released with umdi_delete. */
umd_status umdi_compose(const umd_predictor *predictor, umdi_text prompt, umdi_text text,
                        umdi_text *out);

enum umdi_text_use {
    UMDI_TEXT_ONCE,    /* about a patient: never cached */
    UMDI_TEXT_KEPT,    /* run, or taken from the cache */
    UMDI_TEXT_EMBEDDED /* not cached; with its embedding */
};

/* Run the text encoder, or take what the cache has. */
umd_status umdi_encode_text(umd_predictor *predictor, umdi_text text, enum umdi_text_use use,
                            umdi_control *control, umdi_features **out);
void umdi_features_free(umd_predictor *predictor, umdi_features *features);

/* ---- values.c ---- */

umd_status umdi_values_init(const umd_predictor *predictor, umdi_values *values);
/* Encode what a caller gave for a task. Fails with STRUCTURED_INPUT. */
umd_status umdi_values_fill(const umd_predictor *predictor, const umdi_task *task,
                            const umd_value *given, size_t count, umdi_values *values);
void umdi_values_free(const umd_predictor *predictor, umdi_values *values);

/* ---- tasks ---- */

/* The task of that name and kind; with NULL, the only one of the kind. Fails with UNKNOWN_TASK. */
umd_status umdi_find_task(const umd_predictor *predictor, const char *name, int32_t kind,
                          const umdi_task **out);

/* Why the image's DICOM facts contradict the task, or an empty string. */
void umdi_outside(const umd_image *image, const umdi_task *task, char reason[UMDI_REASON_BYTES]);

/* One output of the fusion graph for one image and text. */
umd_status umdi_fuse(const umd_image *image, const umdi_features *text, const umdi_values *values,
                     const char *output, umdi_control *control, umdi_tensor *out);

#endif
