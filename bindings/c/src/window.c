#include "window.h"

#include <math.h>
#include <string.h>

#define MAX_SIDE 65535u
#define MAX_PIXELS 64000000ull
#define MAX_EXPONENT 50.0

static umd_status bad(const char *problem)
{
    return umdi_fail(UMD_ERROR_IMAGE_INPUT, "%s", problem);
}

static int32_t value_at(const umdi_window *window, const uint8_t *row, uint32_t index)
{
    int16_t signed_value;
    uint16_t value;
    if (window->pixels.type == UMD_UINT8)
        return row[index];
    if (window->pixels.type == UMD_INT16) {
        memcpy(&signed_value, row + 2 * (size_t)index, 2);
        return signed_value;
    }
    memcpy(&value, row + 2 * (size_t)index, 2);
    return value;
}

static const uint8_t *row_at(const umdi_window *window, uint32_t row)
{
    return (const uint8_t *)window->pixels.data + window->stride * row;
}

static umd_status check_layout(umdi_window *window)
{
    const umd_pixels *p = &window->pixels;
    size_t row_bytes;
    if (p->data == NULL || p->width < 1 || p->height < 1)
        return bad("the image holds no pixels; give data, width and height");
    if ((uint64_t)p->width * p->height > MAX_PIXELS || p->width > MAX_SIDE || p->height > MAX_SIDE)
        return umdi_fail(UMD_ERROR_IMAGE_INPUT,
                         "the image is %u x %u pixels large; at most 64 megapixels and %u a side "
                         "are allowed. Scale it down first",
                         p->width, p->height, MAX_SIDE);
    if (p->type < UMD_UINT8 || p->type > UMD_INT16)
        return bad("pixels of an unknown type; UMD_UINT8, UMD_UINT16 or UMD_INT16 are allowed");
    if (p->photometric < UMD_MONOCHROME2 || p->photometric > UMD_RGB)
        return bad("an unknown photometric interpretation; UMD_MONOCHROME2, UMD_MONOCHROME1 or "
                   "UMD_RGB are allowed");
    window->channels = p->photometric == UMD_RGB ? 3 : 1;
    window->row_values = p->width * window->channels;
    row_bytes = (size_t)window->row_values * (p->type == UMD_UINT8 ? 1 : 2);
    window->stride = p->stride != 0 ? p->stride : row_bytes;
    if (window->stride < row_bytes)
        return umdi_fail(UMD_ERROR_IMAGE_INPUT,
                         "the stride is %zu bytes; a row of these pixels has %zu", window->stride,
                         row_bytes);
    if (p->size < row_bytes || (p->size - row_bytes) / window->stride < p->height - 1)
        return umdi_fail(UMD_ERROR_IMAGE_INPUT,
                         "the pixels have %zu bytes, too few for %u rows of %zu", p->size,
                         p->height, window->stride);
    return UMD_OK;
}

static umd_status find_range(umdi_window *window)
{
    int32_t low = INT32_MAX, high = INT32_MIN;
    for (uint32_t y = 0; y < window->pixels.height; y++) {
        const uint8_t *row = row_at(window, y);
        for (uint32_t i = 0; i < window->row_values; i++) {
            int32_t value = value_at(window, row, i);
            low = value < low ? value : low;
            high = value > high ? value : high;
        }
    }
    if (low == high)
        return bad("all pixels of the image are equal; there is nothing to see");
    window->low = low;
    window->high = high;
    return UMD_OK;
}

static umd_status check_window(const umd_pixels *p)
{
    double lowest = p->window == UMD_WINDOW_LINEAR ? 1.0 : 0.0;
    if (!isfinite(p->window_centre) || !isfinite(p->window_width) ||
        !isfinite(p->rescale_slope) || !isfinite(p->rescale_intercept))
        return bad("a window, slope or intercept is not finite");
    if (p->window_width < lowest || p->window_width <= 0)
        return bad("the window's width is too small: at least 1 is needed for UMD_WINDOW_LINEAR, "
                   "more than 0 for the others");
    return UMD_OK;
}

umd_status umdi_window_init(umdi_window *window, const umd_pixels *pixels)
{
    memset(window, 0, sizeof *window);
    UMDI_TRY(umdi_take(&window->pixels, sizeof window->pixels, pixels, "umd_pixels"));
    UMDI_TRY(check_layout(window));
    umd_pixels *p = &window->pixels;
    if (p->window == UMD_WINDOW_DEFAULT && p->type != UMD_UINT8)
        p->window = UMD_WINDOW_MIN_MAX;
    if (p->rescale_slope == 0)
        p->rescale_slope = 1;
    switch (p->window) {
    case UMD_WINDOW_DEFAULT:
        return UMD_OK;
    case UMD_WINDOW_MIN_MAX:
        return find_range(window);
    case UMD_WINDOW_RANGE:
        window->low = p->window_low;
        window->high = p->window_high;
        if (window->high <= window->low)
            return umdi_fail(UMD_ERROR_IMAGE_INPUT,
                             "window of %d to %d is empty; the upper end must be larger",
                             p->window_low, p->window_high);
        return UMD_OK;
    case UMD_WINDOW_LINEAR:
    case UMD_WINDOW_LINEAR_EXACT:
    case UMD_WINDOW_SIGMOID:
        return check_window(p);
    default:
        return bad("an unknown window; use one of the UMD_WINDOW_ values");
    }
}

static double clip(double value, double low, double high)
{
    return value < low ? low : value > high ? high : value;
}

/* Brightness 0..1, DICOM PS3.3 C.11.2.1. */
static double brightness(const umd_pixels *p, double x)
{
    double centre = p->window_centre, width = p->window_width;
    if (p->window == UMD_WINDOW_SIGMOID)
        return 1.0 /
               (1.0 + exp(clip(-4.0 * (x - centre) / width, -MAX_EXPONENT, MAX_EXPONENT)));
    if (p->window == UMD_WINDOW_LINEAR_EXACT)
        return clip((x - centre) / width + 0.5, 0.0, 1.0);
    if (width == 1.0)
        return x > centre - 0.5 ? 1.0 : 0.0;
    return clip((x - (centre - 0.5)) / (width - 1.0) + 0.5, 0.0, 1.0);
}

static uint8_t to_level(const umdi_window *window, int32_t value)
{
    const umd_pixels *p = &window->pixels;
    int64_t span = window->high - window->low, shifted = value - window->low;
    if (p->window == UMD_WINDOW_DEFAULT)
        return (uint8_t)value;
    if (p->window >= UMD_WINDOW_LINEAR) {
        double x = (double)value * p->rescale_slope + p->rescale_intercept;
        return (uint8_t)floor(brightness(p, x) * 255.0 + 0.5);
    }
    shifted = shifted < 0 ? 0 : shifted > span ? span : shifted;
    /* floor(a / b + 1/2) == (2 a + b) / (2 b) in integers */
    return (uint8_t)((shifted * 510 + span) / (2 * span));
}

const uint8_t *umdi_window_row(const umdi_window *window, uint32_t row, uint8_t *buffer)
{
    const uint8_t *source = row_at(window, row);
    bool inverted = window->pixels.photometric == UMD_MONOCHROME1;
    if (window->pixels.window == UMD_WINDOW_DEFAULT && !inverted)
        return source;
    for (uint32_t i = 0; i < window->row_values; i++) {
        uint8_t level = to_level(window, value_at(window, source, i));
        buffer[i] = inverted ? (uint8_t)(255 - level) : level;
    }
    return buffer;
}
