/* The part of ONNX Runtime's C interface that this library uses, opened at run time. The interface
 * is a table of functions that only grows at its end, so that their places are fixed. */
#ifndef UMDI_ORT_H
#define UMDI_ORT_H

#include "base.h"

typedef struct OrtStatus OrtStatus;
typedef struct OrtEnv OrtEnv;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtValue OrtValue;
typedef struct OrtTypeInfo OrtTypeInfo;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtAllocator OrtAllocator;
typedef struct OrtTensorRTProviderOptionsV2 OrtTensorRTProviderOptionsV2;

#define UMDI_ORT_API_VERSION 18 /* onnxruntime 1.18 */
#define UMDI_ORT_FLOAT 1
#define UMDI_ORT_INT64 7

typedef void (*umdi_ort_log)(void *context, int severity, const char *category, const char *id,
                             const char *location, const char *message);

/* X(place, name, result, parameters) of every function that is used. */
#define UMDI_ORT_FUNCTIONS(X)                                                                      \
    X(1, GetErrorCode, int, (const OrtStatus *))                                                   \
    X(2, GetErrorMessage, const char *, (const OrtStatus *))                                       \
    X(4, CreateEnvWithCustomLogger, OrtStatus *,                                                   \
      (umdi_ort_log, void *, int, const char *, OrtEnv **))                                        \
    X(8, CreateSessionFromArray, OrtStatus *,                                                      \
      (const OrtEnv *, const void *, size_t, const OrtSessionOptions *, OrtSession **))            \
    X(9, Run, OrtStatus *,                                                                         \
      (OrtSession *, const OrtRunOptions *, const char *const *, const OrtValue *const *, size_t,  \
       const char *const *, size_t, OrtValue **))                                                  \
    X(10, CreateSessionOptions, OrtStatus *, (OrtSessionOptions **))                               \
    X(19, DisableCpuMemArena, OrtStatus *, (OrtSessionOptions *))                                  \
    X(23, SetSessionGraphOptimizationLevel, OrtStatus *, (OrtSessionOptions *, int))               \
    X(24, SetIntraOpNumThreads, OrtStatus *, (OrtSessionOptions *, int))                           \
    X(25, SetInterOpNumThreads, OrtStatus *, (OrtSessionOptions *, int))                           \
    X(30, SessionGetInputCount, OrtStatus *, (const OrtSession *, size_t *))                       \
    X(31, SessionGetOutputCount, OrtStatus *, (const OrtSession *, size_t *))                      \
    X(33, SessionGetInputTypeInfo, OrtStatus *, (const OrtSession *, size_t, OrtTypeInfo **))      \
    X(36, SessionGetInputName, OrtStatus *,                                                        \
      (const OrtSession *, size_t, OrtAllocator *, char **))                                       \
    X(37, SessionGetOutputName, OrtStatus *,                                                       \
      (const OrtSession *, size_t, OrtAllocator *, char **))                                       \
    X(39, CreateRunOptions, OrtStatus *, (OrtRunOptions **))                                       \
    X(46, RunOptionsSetTerminate, OrtStatus *, (OrtRunOptions *))                                  \
    X(49, CreateTensorWithDataAsOrtValue, OrtStatus *,                                             \
      (const OrtMemoryInfo *, void *, size_t, const int64_t *, size_t, int, OrtValue **))          \
    X(51, GetTensorMutableData, OrtStatus *, (OrtValue *, void **))                                \
    X(55, CastTypeInfoToTensorInfo, OrtStatus *,                                                   \
      (const OrtTypeInfo *, const OrtTensorTypeAndShapeInfo **))                                   \
    X(60, GetTensorElementType, OrtStatus *, (const OrtTensorTypeAndShapeInfo *, int *))           \
    X(61, GetDimensionsCount, OrtStatus *, (const OrtTensorTypeAndShapeInfo *, size_t *))          \
    X(62, GetDimensions, OrtStatus *, (const OrtTensorTypeAndShapeInfo *, int64_t *, size_t))      \
    X(65, GetTensorTypeAndShape, OrtStatus *, (const OrtValue *, OrtTensorTypeAndShapeInfo **))    \
    X(69, CreateCpuMemoryInfo, OrtStatus *, (int, int, OrtMemoryInfo **))                          \
    X(76, AllocatorFree, OrtStatus *, (OrtAllocator *, void *))                                    \
    X(78, GetAllocatorWithDefaultOptions, OrtStatus *, (OrtAllocator **))                          \
    X(92, ReleaseEnv, void, (OrtEnv *))                                                            \
    X(93, ReleaseStatus, void, (OrtStatus *))                                                      \
    X(94, ReleaseMemoryInfo, void, (OrtMemoryInfo *))                                              \
    X(95, ReleaseSession, void, (OrtSession *))                                                    \
    X(96, ReleaseValue, void, (OrtValue *))                                                        \
    X(97, ReleaseRunOptions, void, (OrtRunOptions *))                                              \
    X(98, ReleaseTypeInfo, void, (OrtTypeInfo *))                                                  \
    X(99, ReleaseTensorTypeAndShapeInfo, void, (OrtTensorTypeAndShapeInfo *))                      \
    X(100, ReleaseSessionOptions, void, (OrtSessionOptions *))                                     \
    X(125, GetAvailableProviders, OrtStatus *, (char ***, int *))                                  \
    X(126, ReleaseAvailableProviders, OrtStatus *, (char **, int))                                 \
    X(130, AddSessionConfigEntry, OrtStatus *,                                                     \
      (OrtSessionOptions *, const char *, const char *))                                           \
    X(170, SessionOptionsAppendExecutionProvider_TensorRT_V2, OrtStatus *,                         \
      (OrtSessionOptions *, const OrtTensorRTProviderOptionsV2 *))                                 \
    X(171, CreateTensorRTProviderOptions, OrtStatus *, (OrtTensorRTProviderOptionsV2 **))          \
    X(172, UpdateTensorRTProviderOptions, OrtStatus *,                                             \
      (OrtTensorRTProviderOptionsV2 *, const char *const *, const char *const *, size_t))          \
    X(174, ReleaseTensorRTProviderOptions, void, (OrtTensorRTProviderOptionsV2 *))

typedef struct umdi_ort {
    const char *version; /* of the library, such as "1.31.1" */
#define UMDI_MEMBER(place, name, result, parameters) result(*name) parameters;
    UMDI_ORT_FUNCTIONS(UMDI_MEMBER)
#undef UMDI_MEMBER
} umdi_ort;

/* To be called before the library is opened, in the caller's own thread. It reads the environment
 * when it is opened or its environment made: official builds from 1.29 on report to Microsoft and
 * keep an identifier of the machine otherwise. */
void umdi_ort_silence(void);

/* Open the library: `path`, else what UMD_ONNXRUNTIME names, else the system's. It stays open as
 * long as the process, since it is not made to be closed. Fails with MISSING_DEPENDENCY or
 * PROVIDER_UNAVAILABLE. */
umd_status umdi_ort_load(umdi_ort *ort, const char *path);

/* Release a status and tell whether it was good. */
bool umdi_is_good(const umdi_ort *ort, OrtStatus *status);

#endif
