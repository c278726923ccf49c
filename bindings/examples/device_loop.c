/* A device that asks the same questions about every frame, each with a deadline.
 *
 *     device_loop BUNDLE ONNXRUNTIME FRAMES
 *
 * The frames are made up here; a device hands over its own memory in the same way. */
#include <stdio.h>
#include <stdlib.h>

#include "umd_edge.h"

#define WIDTH 640
#define HEIGHT 480
#define DEADLINE_MS 2000.0

static const char *const questions[] = {"which organ is shown?", "is there an abnormality?"};
#define QUESTIONS (sizeof questions / sizeof *questions)

static int report(const char *what, umd_status status)
{
    fprintf(stderr, "%s: %s: %s\n", what, umd_status_name(status), umd_last_error());
    return (int)(status >= 100 ? 1 : status / 10);
}

/* What the frame grabber would write: a bright disc that moves. */
static void grab(uint8_t *frame, int number)
{
    for (int y = 0; y < HEIGHT; y++)
        for (int x = 0; x < WIDTH; x++) {
            int dx = x - (WIDTH / 2 + 20 * number), dy = y - HEIGHT / 2;
            frame[y * WIDTH + x] = (uint8_t)(dx * dx + dy * dy < 22500 ? 200 : 20);
        }
}

static umd_status ask(umd_image *image, int number, const char *question)
{
    umd_call call;
    umd_item item;
    umd_result *result = NULL;
    umd_status status;
    umd_call_init(&call, sizeof call);
    umd_item_init(&item, sizeof item);
    call.deadline_ms = DEADLINE_MS;
    status = umd_ask(image, question, NULL, &call, &result);
    if (status == UMD_OK)
        status = umd_get_item(result, 0, &item);
    if (status == UMD_OK)
        printf("frame %d: %s %s (%.3f)\n", number, question, item.name, item.probability);
    umd_result_free(result);
    return status;
}

static umd_status handle(umd_predictor *predictor, const uint8_t *frame, int number)
{
    umd_pixels pixels;
    umd_call call;
    umd_image *image = NULL;
    umd_status status;
    umd_pixels_init(&pixels, sizeof pixels);
    umd_call_init(&call, sizeof call);
    pixels.data = frame;
    pixels.size = WIDTH * HEIGHT;
    pixels.width = WIDTH;
    pixels.height = HEIGHT;
    call.deadline_ms = DEADLINE_MS;
    status = umd_encode(predictor, &pixels, &call, &image);
    for (size_t i = 0; i < QUESTIONS && status == UMD_OK; i++)
        status = ask(image, number, questions[i]);
    umd_image_free(image);
    return status;
}

int main(int count, char **arguments)
{
    static uint8_t frame[WIDTH * HEIGHT];
    umd_open_options options;
    umd_predictor *predictor = NULL;
    umd_status status;
    int frames;
    if (count != 4) {
        fprintf(stderr, "usage: device_loop BUNDLE ONNXRUNTIME FRAMES\n");
        return 2;
    }
    frames = atoi(arguments[3]);
    umd_open_options_init(&options, sizeof options);
    options.onnxruntime = arguments[2];
    status = umd_open(arguments[1], &options, &predictor);
    if (status != UMD_OK)
        return report("open", status);
    status = umd_selftest(predictor, NULL, NULL);
    for (int number = 0; number < frames && status == UMD_OK; number++) {
        grab(frame, number);
        status = handle(predictor, frame, number);
        /* A frame that takes too long is left out; everything else ends the loop. */
        if (status == UMD_ERROR_DEADLINE)
            status = UMD_OK;
    }
    umd_close(predictor);
    return status == UMD_OK ? 0 : report("run", status);
}
