/* What `manifest.json` says; the rules of `umd_edge/_manifest.py`, and nothing else is accepted. */
#ifndef UMDI_MANIFEST_H
#define UMDI_MANIFEST_H

#include "json.h"
#include "ood.h"
#include "trust.h"

enum umdi_part { UMDI_VISION, UMDI_TEXT, UMDI_FUSION, UMDI_PARTS };

typedef struct umdi_file {
    umdi_text name;
    uint64_t size;
    umdi_text sha256;
} umdi_file;

enum umdi_field_kind { UMDI_BINARY, UMDI_NUMERIC, UMDI_CATEGORICAL };

typedef struct umdi_field {
    umdi_text name;
    umdi_text unit;
    enum umdi_field_kind kind;
    double mean;
    double std;
    size_t category_count;
    umdi_text *categories;
} umdi_field;

typedef struct umdi_preprocessing {
    int32_t height;
    int32_t width;
    int32_t channels;
    int32_t bits;
    double mean[3];
    double std[3];
} umdi_preprocessing;

/* Texts that are allowed for a DICOM header value; none: any. */
typedef struct umdi_texts {
    umdi_text *items;
    size_t count;
    bool given;
} umdi_texts;

/* Facts of a DICOM header that a task may be meant for, in the order in which they are compared. */
enum umdi_fact { UMDI_MODALITY, UMDI_BODY_PART, UMDI_VIEW, UMDI_BURNED_IN, UMDI_FACTS };

typedef struct umdi_task {
    umdi_text name;
    umdi_text prompt;
    umdi_text output_name; /* of the fusion graph */
    int32_t kind;          /* UMD_CLASSIFICATION and so on */
    bool multi_label;
    bool is_sigmoid;
    bool reads_text;
    bool *reads_field; /* one for each structured field */
    int32_t field_count;
    umdi_texts outputs;
    double temperature;
    double *scale; /* one for each output, applied after the temperature; NULL: none */
    double *bias;
    bool has_other; /* scaled logit of all answers that are not listed */
    double other;
    bool has_platt; /* the last step of the scaling */
    double platt[2];
    double *operating_points; /* one for each output */
    umdi_curve *curves;       /* one for each output; NULL: none */
    umdi_conformal conformal;
    umdi_ood_spec ood;
    bool has_abstain;
    double abstain;
    umdi_texts applies_to[UMDI_FACTS];
} umdi_task;

typedef struct umdi_variant {
    umdi_text name;
    umdi_text graphs[UMDI_PARTS];
    double tolerance;
    int weight_bits;   /* of integer weights */
    bool may_saturate; /* 8-bit weights: sums of products can overflow without VNNI */
} umdi_variant;

typedef struct umdi_manifest {
    umdi_text name;
    umdi_text version;
    umdi_text statement;
    umdi_preprocessing preprocessing;
    umdi_text tokenizer;
    int32_t max_length;
    size_t field_count;
    umdi_field *fields;
    size_t task_count;
    umdi_task *tasks;
    size_t variant_count;
    umdi_variant *variants;
    umdi_text default_variant;
    umdi_text golden;
    size_t file_count;
    umdi_file *files;
} umdi_manifest;

#define UMDI_MAX_MANIFEST_BYTES (4u << 20)

/* Parse; everything lies in the arena. Fails with MANIFEST or BUNDLE_VERSION. */
umd_status umdi_manifest_parse(umdi_arena *arena, umdi_text source, umdi_manifest *manifest);

const umdi_file *umdi_manifest_file(const umdi_manifest *manifest, umdi_text name);
const umdi_variant *umdi_manifest_variant(const umdi_manifest *manifest, umdi_text name);

#endif
