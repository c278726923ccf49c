/* From the start of a process to its first answer, and what it keeps in memory then.
 *
 *     c_start BUNDLE ONNXRUNTIME QUESTION
 *
 * Prints the answer as soon as it is there, then milliseconds of each step and kilobytes. */
#include <stdio.h>
#include <string.h>

#include "../bindings/c/src/control.h"
#include "umd_edge.h"

#define WIDTH 640
#define HEIGHT 480

static int fail(void)
{
    fprintf(stderr, "%s\n", umd_last_error());
    return 1;
}

static long status_kb(const char *name)
{
    char line[256], format[32];
    long kb = 0;
    FILE *file = fopen("/proc/self/status", "r");
    snprintf(format, sizeof format, "%s: %%ld", name);
    while (file != NULL && fgets(line, sizeof line, file) != NULL)
        if (sscanf(line, format, &kb) == 1)
            break;
    if (file != NULL)
        fclose(file);
    return kb;
}

int main(int count, char **arguments)
{
    static uint8_t frame[WIDTH * HEIGHT];
    umd_open_options options;
    umd_pixels pixels;
    umd_item item;
    umd_predictor *predictor = NULL;
    umd_image *image = NULL;
    umd_result *result = NULL;
    double start = umdi_now_ms(), opened, encoded, asked;
    if (count != 4) {
        fprintf(stderr, "usage: c_start BUNDLE ONNXRUNTIME QUESTION\n");
        return 2;
    }
    umd_open_options_init(&options, sizeof options);
    umd_pixels_init(&pixels, sizeof pixels);
    umd_item_init(&item, sizeof item);
    for (size_t i = 0; i < sizeof frame; i++)
        frame[i] = (uint8_t)(i * 7);
    options.onnxruntime = arguments[2];
    pixels.data = frame;
    pixels.size = sizeof frame;
    pixels.width = WIDTH;
    pixels.height = HEIGHT;
    if (umd_open(arguments[1], &options, &predictor) != UMD_OK)
        return fail();
    opened = umdi_now_ms();
    if (umd_encode(predictor, &pixels, NULL, &image) != UMD_OK)
        return fail();
    encoded = umdi_now_ms();
    if (umd_ask(image, arguments[3], NULL, NULL, &result) != UMD_OK ||
        umd_get_item(result, 0, &item) != UMD_OK)
        return fail();
    asked = umdi_now_ms();
    puts(item.name);
    fflush(stdout);
    printf("{\"open_ms\": %.2f, \"encode_ms\": %.2f, \"ask_ms\": %.2f, \"resident_kb\": %ld, "
           "\"peak_kb\": %ld}\n",
           opened - start, encoded - opened, asked - encoded, status_kb("VmRSS"),
           status_kb("VmHWM"));
    umd_result_free(result);
    umd_image_free(image);
    umd_close(predictor);
    return 0;
}
