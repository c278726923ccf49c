/*
 * umd_edge.h: run a umd-edge bundle from C, with the numbers of the Python runtime.
 *
 *     umd_open_options options;
 *     umd_open_options_init(&options, sizeof options);
 *     umd_predictor *predictor = NULL;
 *     if (umd_open("model.umd", &options, &predictor) != UMD_OK)
 *         return report(umd_last_error());
 *
 *     umd_pixels pixels;
 *     umd_pixels_init(&pixels, sizeof pixels);
 *     pixels.data = frame;
 *     pixels.size = 640 * 480;
 *     pixels.width = 640;
 *     pixels.height = 480;
 *     umd_image *image = NULL;
 *     umd_result *result = NULL;
 *     umd_status status = umd_encode(predictor, &pixels, NULL, &image);
 *     if (status == UMD_OK)
 *         status = umd_ask(image, "which organ is shown?", NULL, &result);
 *
 * Not a medical device: for research and development only.
 *
 * Who frees what. Everything behind a `**out` is the caller's and has one function that ends it:
 * umd_close, umd_image_free, umd_result_free, umd_cancel_free; each accepts NULL. Images and
 * results keep their predictor alive, so the order does not matter. A `const char *` that comes out
 * belongs to the object it was asked of and lives as long. What the caller hands in is read during
 * the call and not kept, except the functions and contexts of allocator and log. Where a function
 * fails, its `**out` is NULL.
 *
 * Threads. A predictor and an image may be used from any number of threads at once. A result may be
 * read from several threads. A cancel token is made to be used from another thread. Only the call
 * that ends an object must be the last one. umd_last_error is of the calling thread.
 *
 * Versions. Every struct begins with `struct_size`, filled by its `_init` function, and grows at
 * the end only: a caller built with an older header keeps working. Zero means the default. Only
 * umd_allocator, umd_value, umd_member and umd_match have none; they never change.
 *
 * Text is UTF-8. Nothing is written to standard output or standard error, no exception or abort
 * crosses this boundary, no network connection is opened, and there is no global state; opening a
 * bundle sets the environment variable ORT_DISABLE_TELEMETRY, so that ONNX Runtime opens none
 * either.
 */
#ifndef UMD_EDGE_H
#define UMD_EDGE_H

#include <stddef.h>
#include <stdint.h>

#define UMD_ABI_VERSION 1

#if defined(_WIN32) && defined(UMD_EDGE_SHARED)
#ifdef UMD_EDGE_BUILD
#define UMD_API __declspec(dllexport)
#else
#define UMD_API __declspec(dllimport)
#endif
#elif defined(__GNUC__)
#define UMD_API __attribute__((visibility("default")))
#else
#define UMD_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- status --------------------------------------------------------------------------------- */

/* What a function returns. One code for each error class of the Python runtime, whose exit code is
 * the code divided by ten; those from UMD_ERROR_OUT_OF_MEMORY on exist in C only. */
typedef int32_t umd_status;

enum {
    UMD_OK = 0,
    UMD_ERROR = 10,                      /* UmdEdgeError: a fault of the library itself */
    UMD_ERROR_AUDIT_WRITE = 11,          /* AuditWriteError */
    UMD_ERROR_USAGE = 20,                /* UsageError */
    UMD_ERROR_UNKNOWN_TASK = 21,         /* UnknownTaskError */
    UMD_ERROR_BUNDLE = 30,               /* BundleError */
    UMD_ERROR_BUNDLE_NOT_FOUND = 31,     /* BundleNotFoundError */
    UMD_ERROR_MANIFEST = 32,             /* ManifestError */
    UMD_ERROR_BUNDLE_INTEGRITY = 33,     /* BundleIntegrityError */
    UMD_ERROR_BUNDLE_VERSION = 34,       /* BundleVersionError */
    UMD_ERROR_SELF_TEST = 35,            /* SelfTestError */
    UMD_ERROR_BUNDLE_SIGNATURE = 36,     /* BundleSignatureError */
    UMD_ERROR_AUDIT = 37,                /* AuditError */
    UMD_ERROR_INPUT = 40,                /* InputError */
    UMD_ERROR_IMAGE_INPUT = 41,          /* ImageInputError */
    UMD_ERROR_DICOM_INPUT = 42,          /* DicomInputError */
    UMD_ERROR_TEXT_INPUT = 43,           /* TextInputError */
    UMD_ERROR_STRUCTURED_INPUT = 44,     /* StructuredInputError */
    UMD_ERROR_DATA = 45,                 /* DataError */
    UMD_ERROR_GALLERY = 46,              /* GalleryError */
    UMD_ERROR_PROVIDER = 50,             /* ProviderError */
    UMD_ERROR_PROVIDER_UNAVAILABLE = 51, /* ProviderUnavailableError */
    UMD_ERROR_INFERENCE = 52,            /* InferenceError */
    UMD_ERROR_MISSING_DEPENDENCY = 53,   /* MissingDependencyError: no ONNX Runtime was found */
    UMD_ERROR_STOPPED = 54,              /* StoppedError */
    UMD_ERROR_CANCELLED = 55,            /* CancelledError */
    UMD_ERROR_DEADLINE = 56,             /* DeadlineExceededError */
    UMD_ERROR_OUT_OF_MEMORY = 100,
    UMD_ERROR_BUFFER_TOO_SMALL = 101 /* the size that is needed has been written */
};

/* The ABI version of the library that is linked; compare with UMD_ABI_VERSION. */
UMD_API uint32_t umd_abi_version(void);

/* Version of the library, such as "0.1.0". */
UMD_API const char *umd_version(void);

/* Name of a status: the Python class (`TextInputError`), or `Cancelled` and the like. */
UMD_API const char *umd_status_name(umd_status status);

/* What the last failed call of this thread said: what was given, what is allowed, what to do. Never
 * patient data. Empty before the first failure; valid until the thread's next call that fails. */
UMD_API const char *umd_last_error(void);

/* ---- opening a bundle ----------------------------------------------------------------------- */

typedef struct umd_predictor umd_predictor;
typedef struct umd_image umd_image;
typedef struct umd_result umd_result;
typedef struct umd_cancel umd_cancel;

enum { UMD_LOG_ERROR = 1, UMD_LOG_WARNING = 2, UMD_LOG_INFO = 3 };

/* Called from the thread of the call it tells about. Must not call the library. */
typedef void (*umd_log_function)(void *context, int32_t level, const char *message);

/* Memory of the library itself; ONNX Runtime keeps its own. Both functions must be thread-safe. */
typedef struct umd_allocator {
    void *(*allocate)(void *context, size_t size); /* aligned as by malloc; NULL: none is left */
    void (*release)(void *context, void *memory);  /* never called with NULL */
    void *context;
} umd_allocator;

typedef struct umd_open_options {
    uint32_t struct_size;
    int32_t threads;         /* inside one operator, 1..256; 0 means 1 */
    const char *variant;     /* NULL: the bundle's default */
    const char *onnxruntime; /* path of the ONNX Runtime library; NULL: the environment variable
                                UMD_ONNXRUNTIME, then the system's libonnxruntime */
    umd_log_function log;    /* NULL: none */
    void *log_context;
    const umd_allocator *allocator; /* NULL: malloc and free */
    const char *sha256;             /* NULL, or the SHA-256 that manifest.json must have, as 64
                                       hexadecimal digits: another bundle is refused */
    const char *public_keys;        /* NULL, or 1 to 8 Ed25519 public keys, each as PEM or as 64
                                       hexadecimal digits, with white space between: a bundle that
                                       none of them signed is refused */
    const char *provider;           /* NULL or "cpu", or "tensorrt" where ONNX Runtime has it (not
                                       run on a GPU yet); never replaced by another one */
    const char *engines;            /* of "tensorrt": a folder that is there. umd_open builds the
                                       engines that it lacks, which takes minutes */
    int32_t trust_engines;          /* 1: use them together with public_keys too, though no
                                       signature covers them */
    int32_t reserved;
} umd_open_options;

UMD_API void umd_open_options_init(umd_open_options *options, size_t size);

/* Open a bundle: a directory or a `.umd` file. The manifest, all names and sizes are checked, and
 * the SHA-256 of every file that is used, on the bytes that are used. For as long as it takes, a
 * second thread does a part of the work where one can be had.
 *
 * Fails with BUNDLE_NOT_FOUND, BUNDLE_INTEGRITY, MANIFEST, BUNDLE_VERSION; BUNDLE_SIGNATURE; USAGE
 * for an unknown variant or option; MISSING_DEPENDENCY or PROVIDER_UNAVAILABLE without a usable ONNX
 * Runtime, or one without the provider. A bundle with another tokenizer than WordPiece is refused
 * with MANIFEST. */
UMD_API umd_status umd_open(const char *path, const umd_open_options *options, umd_predictor **out);

/* The same from the bytes of a `.umd` file, which must stay where they are until umd_close. */
UMD_API umd_status umd_open_memory(const void *bytes, size_t size, const umd_open_options *options,
                                   umd_predictor **out);

/* End a predictor; images and results made with it stay valid. */
UMD_API void umd_close(umd_predictor *predictor);

/* ---- what a bundle says --------------------------------------------------------------------- */

enum {
    UMD_UNSIGNED = 0,
    UMD_SIGNATURE_NOT_CHECKED = 1, /* there is one, and umd_open got no public keys */
    UMD_SIGNATURE_VERIFIED = 2
};

typedef struct umd_description {
    uint32_t struct_size;
    uint32_t task_count;
    const char *name;
    const char *version;
    const char *sha256;    /* identity of the bundle: of the bytes of manifest.json */
    const char *statement; /* of the intended use */
    const char *variant;   /* in use */
    const char *int8_path; /* "native", "u8u8", or "" for a variant without 8-bit products */
    const char *onnxruntime; /* version of the library in use */
    int32_t height;          /* of `pixel_values` */
    int32_t width;
    int32_t channels;
    int32_t max_length;        /* of a text, in tokens */
    const char *manifest;      /* the whole manifest.json */
    size_t manifest_size;      /* bytes */
    size_t embedding_size;     /* numbers of an image or text embedding; 0 before the first one */
    int32_t signature;         /* UMD_UNSIGNED, ... */
    int32_t reserved;
    const char *provider; /* "cpu" or "tensorrt" */
} umd_description;

UMD_API void umd_description_init(umd_description *description, size_t size);
UMD_API umd_status umd_describe(umd_predictor *predictor, umd_description *description);

enum { UMD_CLASSIFICATION = 1, UMD_VQA = 2, UMD_RETRIEVAL = 3 };

typedef struct umd_task {
    uint32_t struct_size;
    int32_t kind;
    const char *name;
    const char *prompt;
    uint32_t output_count; /* labels or answers */
    int32_t multi_label;   /* 1: several labels may be right at once */
    int32_t reads_text;    /* 1: takes text, or a question */
    int32_t reads_values;  /* number of structured fields that it takes */
} umd_task;

UMD_API void umd_task_init(umd_task *task, size_t size);

/* Task number `index`, from 0. Fails with UNKNOWN_TASK. */
UMD_API umd_status umd_get_task(umd_predictor *predictor, uint32_t index, umd_task *task);

/* Label or answer number `output` of a task. */
UMD_API umd_status umd_get_output(umd_predictor *predictor, uint32_t task, uint32_t output,
                                  const char **name);

/* ---- cancelling and deadlines --------------------------------------------------------------- */

/* One token may serve any number of calls. umd_cancel_request ends those that run and those that
 * start later, until umd_cancel_reset. `allocator` may be NULL. */
UMD_API umd_status umd_cancel_create(const umd_allocator *allocator, umd_cancel **out);
UMD_API void umd_cancel_request(umd_cancel *cancel);
UMD_API void umd_cancel_reset(umd_cancel *cancel);
/* Only after the last call that uses it has returned. */
UMD_API void umd_cancel_free(umd_cancel *cancel);

typedef struct umd_call {
    uint32_t struct_size;
    uint32_t reserved;
    double deadline_ms; /* of the whole call, from its start; 0: none. Needs a short-lived thread */
    umd_cancel *cancel; /* NULL: none */
} umd_call;

UMD_API void umd_call_init(umd_call *call, size_t size);

/* ---- images --------------------------------------------------------------------------------- */

enum { UMD_UINT8 = 0, UMD_UINT16 = 1, UMD_INT16 = 2 };

enum {
    UMD_MONOCHROME2 = 0, /* the smallest value is black */
    UMD_MONOCHROME1 = 1, /* the smallest value is white */
    UMD_RGB = 2          /* three interleaved channels */
};

enum {
    UMD_WINDOW_DEFAULT = 0,      /* 8 bits: as they are; 16 bits: UMD_WINDOW_MIN_MAX */
    UMD_WINDOW_MIN_MAX = 1,      /* from the smallest to the largest value of the image */
    UMD_WINDOW_RANGE = 2,        /* from window_low to window_high, in integers */
    UMD_WINDOW_LINEAR = 3,       /* DICOM PS3.3 C.11.2.1.2.1, of centre and width */
    UMD_WINDOW_LINEAR_EXACT = 4, /* C.11.2.1.3.2 */
    UMD_WINDOW_SIGMOID = 5       /* C.11.2.1.3.1 */
};

/* Pixels in the caller's memory, the first row on top. At most 64 megapixels and 65,535 a side. */
typedef struct umd_pixels {
    uint32_t struct_size;
    int32_t type; /* UMD_UINT8, or 16 bits in the processor's byte order, aligned or not */
    const void *data;
    size_t size;   /* bytes that may be read at `data` */
    size_t stride; /* bytes from row to row; 0: rows follow each other */
    uint32_t width;
    uint32_t height;
    int32_t photometric;
    int32_t window;
    int32_t window_low;
    int32_t window_high;
    double window_centre; /* of values after slope and intercept */
    double window_width;
    double rescale_slope; /* of the windows with centre and width; 0 means 1 */
    double rescale_intercept;
    const char *dicom_modality; /* (0008,0060), or NULL: compared with what a task is meant for */
    const char *body_part;      /* (0018,0015), or NULL */
    const char *view;           /* ViewPosition (0018,5101), or NULL */
    const char *burned_in_annotation; /* (0028,0301), or NULL; "YES" is outside the intended use of
                                         a task that does not say otherwise */
} umd_pixels;

UMD_API void umd_pixels_init(umd_pixels *pixels, size_t size);

/* Window, resize and run the vision encoder once, for everything that follows. `call` may be NULL.
 * Fails with IMAGE_INPUT, INFERENCE, CANCELLED, DEADLINE. */
UMD_API umd_status umd_encode(umd_predictor *predictor, const umd_pixels *pixels,
                              const umd_call *call, umd_image **out);
UMD_API void umd_image_free(umd_image *image);

/* The preprocessing alone: (channels, height, width) float32. `*count` is the room at `values`, in
 * numbers, and becomes the number needed; with `values` NULL only that is told. */
UMD_API umd_status umd_preprocess(umd_predictor *predictor, const umd_pixels *pixels, float *values,
                                  size_t *count);

/* The tokenizer alone: `input_ids` of a text, cut to `max_length`. `*count` as above. */
UMD_API umd_status umd_tokenize(umd_predictor *predictor, const char *text, int64_t *ids,
                                size_t *count);

/* ---- results -------------------------------------------------------------------------------- */

enum {
    UMD_RESULT_OK = 0,
    UMD_RESULT_ABSTAIN = 1,             /* the confidence is below the task's threshold */
    UMD_RESULT_OUT_OF_DISTRIBUTION = 2, /* unlike the images that the task was fitted on */
    UMD_RESULT_OUTSIDE_INTENDED_USE = 3 /* the DICOM facts contradict the task; no items */
};

typedef struct umd_result_info {
    uint32_t struct_size;
    int32_t status;
    const char *reason; /* why the status is not UMD_RESULT_OK, or "" */
    const char *task;
    uint32_t count; /* of items */
    uint32_t reserved;
    double text_ms;   /* tokenizer and text graph; close to 0 for a text that is known */
    double fusion_ms; /* fusion graph */
    double total_ms;
    double ood_score; /* above 1.0 the status is UMD_RESULT_OUT_OF_DISTRIBUTION; NaN: the bundle
                         does not say how far an image may be */
} umd_result_info;

UMD_API void umd_result_info_init(umd_result_info *info, size_t size);
UMD_API umd_status umd_get_result(const umd_result *result, umd_result_info *info);

/* Operating point of a label, where umd_classify was asked for a sensitivity or specificity. */
enum {
    UMD_POINT_NONE = 0, /* nothing was asked for, or the label has no curve */
    UMD_POINT_REACHED = 1,
    UMD_POINT_BEST = 2 /* so few records cannot promise what was asked; this is the best point */
};

typedef struct umd_item {
    uint32_t struct_size;
    int32_t positive; /* 1: the answer, the arg-max, or at or above the operating point */
    const char *name; /* label or answer */
    double probability;
    uint32_t output; /* its number among the task's outputs */
    float logit;
    int32_t point; /* UMD_POINT_NONE, ...: what the members that follow are */
    int32_t reserved;
    double threshold;   /* the label is positive from this probability on */
    double sensitivity; /* expected of new patients at that threshold */
    double specificity;
} umd_item;

UMD_API void umd_item_init(umd_item *item, size_t size);

/* Item number `index`. A classification has one for each label, in the task's order; a question
 * has the answer, then up to five alternatives, by falling probability. */
UMD_API umd_status umd_get_item(const umd_result *result, uint32_t index, umd_item *item);

/* One output of a prediction set. */
typedef struct umd_member {
    uint32_t output;
    int32_t states; /* UMD_PRESENT, UMD_ABSENT or both: what cannot be excluded */
} umd_member;

enum { UMD_PRESENT = 1, UMD_ABSENT = 2 };

typedef struct umd_set {
    uint32_t struct_size;
    uint32_t n;       /* validation records behind it; of a multi-label task the fewest */
    int32_t complete; /* 1: so few records exclude nothing, of a multi-label task for some label */
    int32_t other;    /* 1: an answer that the task does not list cannot be excluded; 0: it can;
                         -1: the bundle says nothing about such answers */
} umd_set;

UMD_API void umd_set_init(umd_set *set, size_t size);

/* What cannot be excluded at a coverage, above 0 and below 1: the outputs that may be right, the
 * most probable first; of a multi-label task every label with its states. `*count` is the room at
 * `members` and becomes the number needed; with `members` NULL only that is told. Fails with USAGE
 * where the bundle has no conformal thresholds for the task. */
UMD_API umd_status umd_get_set(const umd_result *result, double coverage, umd_set *set,
                               umd_member *members, size_t *count);
UMD_API void umd_result_free(umd_result *result);

/* ---- asking and classifying ----------------------------------------------------------------- */

/* Answer a question. `task` is the name of a question-answering task, or NULL where the bundle has
 * one only. Fails with TEXT_INPUT, UNKNOWN_TASK, INFERENCE, CANCELLED, DEADLINE. */
UMD_API umd_status umd_ask(umd_image *image, const char *question, const char *task,
                           const umd_call *call, umd_result **out);

/* Several questions, each answered alone: the others cannot change an answer. A question that fails
 * has its own status and a NULL result, and does not stop the others; what is returned is the first
 * of these, or UMD_OK. Deadline and cancel token hold for all of them together. */
UMD_API umd_status umd_ask_batch(umd_image *const *images, const char *const *questions,
                                 size_t count, const char *task, const umd_call *call,
                                 umd_status *statuses, umd_result **results);

/* A structured value. `text` is for categorical fields, `number` for the others (0 or 1 for binary
 * ones). The name is the full path (`structured.itch`) or its last part where that is unique. */
typedef struct umd_value {
    const char *name;
    const char *text;
    double number;
} umd_value;

typedef struct umd_classify_options {
    uint32_t struct_size;
    uint32_t value_count;
    const umd_value *values; /* those left out are missing to the model */
    const char *text;        /* free text, for a task that reads text; NULL: its prompt alone */
    double sensitivity;      /* above 0 and below 1: decide each label, against all others, at the
                                highest threshold that reaches it on new patients; 0: none */
    double specificity;      /* the same at the lowest threshold; not both */
} umd_classify_options;

UMD_API void umd_classify_options_init(umd_classify_options *options, size_t size);

/* Classify by a task. `options` and `call` may be NULL. Fails with USAGE, UNKNOWN_TASK, TEXT_INPUT,
 * STRUCTURED_INPUT, INFERENCE, CANCELLED, DEADLINE. */
UMD_API umd_status umd_classify(umd_image *image, const char *task,
                                const umd_classify_options *options, const umd_call *call,
                                umd_result **out);

/* ---- embedding and ranking ------------------------------------------------------------------ */

/* Embedding of an image or a text, as the graphs give it; `*count` as in umd_preprocess. */
UMD_API umd_status umd_embed_image(umd_image *image, float *values, size_t *count);
UMD_API umd_status umd_embed_text(umd_predictor *predictor, const char *text, const umd_call *call,
                                  float *values, size_t *count);

enum {
    UMD_RANK_TWO_STAGE = 0, /* the best by embedding, put in order by the fusion */
    UMD_RANK_EMBEDDING = 1,
    UMD_RANK_FUSION = 2 /* the fusion runs for every pair */
};

typedef struct umd_match {
    uint32_t index;    /* among those given */
    float score;       /* cosine of the embeddings, -1..1 */
    float match_logit; /* of the fusion; NaN where it was not run */
} umd_match;

/* Order the texts for an image, the best first; all `count` matches are written. `task` names a
 * retrieval task, or is NULL where the bundle has one only; `candidates` is the length of the
 * shortlist of UMD_RANK_TWO_STAGE, 0 means 16. Fails with UNKNOWN_TASK where the bundle was not
 * trained to match images and texts. */
UMD_API umd_status umd_rank_texts(umd_image *image, const char *const *texts, uint32_t count,
                                  const char *task, int32_t method, uint32_t candidates,
                                  const umd_call *call, umd_match *matches);

/* The same for images, all of one predictor. */
UMD_API umd_status umd_rank_images(const char *text, umd_image *const *images, uint32_t count,
                                   const char *task, int32_t method, uint32_t candidates,
                                   const umd_call *call, umd_match *matches);

/* ---- self-test ------------------------------------------------------------------------------ */

typedef struct umd_selftest_report {
    uint32_t struct_size;
    uint32_t checks;         /* arrays compared */
    uint32_t files;          /* files whose hash was compared */
    uint32_t reserved;
    double worst_difference; /* absolute, of any golden output */
    double tolerance;        /* that the variant allows */
} umd_selftest_report;

UMD_API void umd_selftest_report_init(umd_selftest_report *report, size_t size);

/* Hash every file and run the golden vectors: to be done once on every device and after every
 * update. `report` and `call` may be NULL. Fails with SELF_TEST: do not use the bundle there then;
 * or BUNDLE_INTEGRITY. */
UMD_API umd_status umd_selftest(umd_predictor *predictor, const umd_call *call,
                                umd_selftest_report *report);

#ifdef __cplusplus
}
#endif

#endif
