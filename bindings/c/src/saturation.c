#include "saturation.h"

#include <math.h>
#include <string.h>

#define SIDE 16
#define UINT8_TYPE 2 /* ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 */

/* An ONNX graph of one MatMulInteger, `y` (1, 16) int32 = `a` (1, 16) uint8 x `b` (16, 16) int8. The
 * weights `b` lie between the two parts. `a` is an input and `b` is not, as in a quantised model:
 * only then does ONNX Runtime choose between the ways of multiplying. */
static const uint8_t before[] = {
    0x08, 0x08, 0x3a, 0xd6, 0x02, 0x0a, 0x18, 0x0a, 0x01, 0x61, 0x0a, 0x01, 0x62, 0x12, 0x01, 0x79,
    0x22, 0x0d, 0x4d, 0x61, 0x74, 0x4d, 0x75, 0x6c, 0x49, 0x6e, 0x74, 0x65, 0x67, 0x65, 0x72, 0x12,
    0x01, 0x70, 0x2a, 0x8c, 0x02, 0x08, 0x10, 0x08, 0x10, 0x10, 0x03, 0x42, 0x01, 0x62, 0x4a, 0x80,
    0x02};
static const uint8_t behind[] = {
    0x5a, 0x13, 0x0a, 0x01, 0x61, 0x12, 0x0e, 0x0a, 0x0c, 0x08, 0x02, 0x12, 0x08, 0x0a, 0x02, 0x08,
    0x01, 0x0a, 0x02, 0x08, 0x10, 0x62, 0x13, 0x0a, 0x01, 0x79, 0x12, 0x0e, 0x0a, 0x0c, 0x08, 0x06,
    0x12, 0x08, 0x0a, 0x02, 0x08, 0x01, 0x0a, 0x02, 0x08, 0x10, 0x42, 0x04, 0x0a, 0x00, 0x10, 0x11};

umd_status umdi_saturation_error(const umdi_runtime *runtime, int weight_bits, double *error)
{
    static const char *const inputs[] = {"a"}, *const outputs[] = {"y"};
    static const int64_t shape[2] = {1, SIDE};
    const umdi_ort *ort = &runtime->ort;
    uint8_t graph[sizeof before + SIDE * SIDE + sizeof behind], values[SIDE];
    int32_t largest = (1 << (weight_bits - 1)) - 1;
    OrtSession *session = NULL;
    OrtValue *input = NULL, *output = NULL;
    void *sums = NULL;
    bool good;
    memcpy(graph, before, sizeof before);
    memset(graph + sizeof before, largest, SIDE * SIDE);
    memcpy(graph + sizeof before + SIDE * SIDE, behind, sizeof behind);
    memset(values, 255, sizeof values);
    good = umdi_is_good(ort, ort->CreateSessionFromArray(runtime->env, graph, sizeof graph,
                                                         runtime->settings, &session)) &&
           umdi_tensor_wrap(runtime, values, sizeof values, shape, 2, UINT8_TYPE, &input) ==
               UMD_OK &&
           umdi_is_good(ort, ort->Run(session, NULL, inputs, (const OrtValue *const[]){input}, 1,
                                      outputs, 1, &output)) &&
           umdi_is_good(ort, ort->GetTensorMutableData(output, &sums));
    *error = good ? 0 : NAN;
    for (int i = 0; good && i < SIDE; i++) {
        double off = fabs((double)((const int32_t *)sums)[i] - (double)(SIDE * 255 * largest));
        *error = off > *error ? off : *error;
    }
    umdi_value_free(runtime, &output);
    umdi_value_free(runtime, &input);
    if (session != NULL)
        ort->ReleaseSession(session);
    if (good)
        return UMD_OK;
    return umdi_fail(UMD_ERROR_INFERENCE, "ONNX Runtime %.40s cannot multiply integers; try "
                     "another version", ort->version);
}
