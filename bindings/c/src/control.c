#define _POSIX_C_SOURCE 200809L
#include "control.h"

#include <math.h>
#include <string.h>
#include <time.h>

#define LONGEST_MS 1e12

struct umd_cancel {
    umd_allocator allocator;
    pthread_mutex_t lock;
    bool is_requested;
    umdi_control *running;
};

double umdi_now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec * 1e-6;
}

/* Stop the graph that runs, if one does; the next one will not start. */
static void end_by(umdi_control *control, umd_status status)
{
    int running = UMD_OK;
    if (!atomic_compare_exchange_strong(&control->ended_by, &running, status))
        return;
    OrtStatus *problem = control->ort->RunOptionsSetTerminate(control->run);
    if (problem != NULL)
        control->ort->ReleaseStatus(problem);
}

static void *run_timer(void *argument)
{
    umdi_control *control = argument;
    double seconds = floor(control->end_ms / 1e3);
    struct timespec end;
    int waited = 0;
    end.tv_sec = (time_t)seconds;
    end.tv_nsec = (long)((control->end_ms - seconds * 1e3) * 1e6);
    pthread_mutex_lock(&control->lock);
    while (!control->is_done && waited == 0)
        waited = pthread_cond_timedwait(&control->wake, &control->lock, &end);
    if (!control->is_done)
        end_by(control, UMD_ERROR_DEADLINE);
    pthread_mutex_unlock(&control->lock);
    return NULL;
}

static umd_status start_timer(umdi_control *control)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&control->lock, NULL);
    pthread_cond_init(&control->wake, &attributes);
    pthread_condattr_destroy(&attributes);
    control->has_timer = pthread_create(&control->timer, NULL, run_timer, control) == 0;
    if (control->has_timer)
        return UMD_OK;
    pthread_cond_destroy(&control->wake);
    pthread_mutex_destroy(&control->lock);
    return umdi_fail(UMD_ERROR, "a thread that watches the deadline could not be started");
}

static void enter(umd_cancel *cancel, umdi_control *control)
{
    control->cancel = cancel;
    pthread_mutex_lock(&cancel->lock);
    control->next = cancel->running;
    if (control->next != NULL)
        control->next->previous = control;
    cancel->running = control;
    if (cancel->is_requested)
        end_by(control, UMD_ERROR_CANCELLED);
    pthread_mutex_unlock(&cancel->lock);
}

static void leave(umd_cancel *cancel, umdi_control *control)
{
    pthread_mutex_lock(&cancel->lock);
    if (control->previous != NULL)
        control->previous->next = control->next;
    else
        cancel->running = control->next;
    if (control->next != NULL)
        control->next->previous = control->previous;
    pthread_mutex_unlock(&cancel->lock);
}

umd_status umdi_control_begin(umdi_control *control, const umdi_ort *ort, const umd_call *call)
{
    umd_call given;
    OrtStatus *problem;
    memset(control, 0, sizeof *control);
    atomic_init(&control->ended_by, UMD_OK);
    control->ort = ort;
    UMDI_TRY(umdi_take(&given, sizeof given, call, "umd_call"));
    if (!(given.deadline_ms >= 0 && given.deadline_ms <= LONGEST_MS))
        return umdi_fail(UMD_ERROR_USAGE,
                         "deadline_ms is not a time; give milliseconds from now, or 0 for none");
    if (given.deadline_ms == 0 && given.cancel == NULL)
        return UMD_OK;
    problem = ort->CreateRunOptions(&control->run);
    if (problem != NULL) {
        ort->ReleaseStatus(problem);
        return umdi_no_memory();
    }
    if (given.cancel != NULL)
        enter(given.cancel, control);
    if (given.deadline_ms > 0) {
        control->end_ms = umdi_now_ms() + given.deadline_ms;
        UMDI_TRY(start_timer(control));
    }
    return umdi_control_check(control);
}

void umdi_control_end(umdi_control *control)
{
    if (control->has_timer) {
        pthread_mutex_lock(&control->lock);
        control->is_done = true;
        pthread_cond_signal(&control->wake);
        pthread_mutex_unlock(&control->lock);
        pthread_join(control->timer, NULL);
        pthread_cond_destroy(&control->wake);
        pthread_mutex_destroy(&control->lock);
    }
    if (control->cancel != NULL)
        leave(control->cancel, control);
    if (control->run != NULL)
        control->ort->ReleaseRunOptions(control->run);
}

umd_status umdi_control_check(void *context)
{
    umdi_control *control = context;
    if (control->end_ms > 0 && umdi_now_ms() >= control->end_ms)
        end_by(control, UMD_ERROR_DEADLINE);
    switch (atomic_load(&control->ended_by)) {
    case UMD_ERROR_CANCELLED:
        return umdi_fail(UMD_ERROR_CANCELLED, "the call was cancelled");
    case UMD_ERROR_DEADLINE:
        return umdi_fail(UMD_ERROR_DEADLINE,
                         "the deadline has passed; allow more time or use a smaller bundle");
    default:
        return UMD_OK;
    }
}

umd_status umd_cancel_create(const umd_allocator *allocator, umd_cancel **out)
{
    umd_allocator own = umdi_allocator(allocator);
    umd_cancel *cancel;
    if (out == NULL)
        return umdi_fail(UMD_ERROR_USAGE, "out is NULL; give the address of a pointer");
    *out = cancel = umdi_new(&own, 1, sizeof *cancel);
    if (cancel == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    cancel->allocator = own;
    pthread_mutex_init(&cancel->lock, NULL);
    return UMD_OK;
}

void umd_cancel_request(umd_cancel *cancel)
{
    if (cancel == NULL)
        return;
    pthread_mutex_lock(&cancel->lock);
    cancel->is_requested = true;
    for (umdi_control *control = cancel->running; control != NULL; control = control->next)
        end_by(control, UMD_ERROR_CANCELLED);
    pthread_mutex_unlock(&cancel->lock);
}

void umd_cancel_reset(umd_cancel *cancel)
{
    if (cancel == NULL)
        return;
    pthread_mutex_lock(&cancel->lock);
    cancel->is_requested = false;
    pthread_mutex_unlock(&cancel->lock);
}

void umd_cancel_free(umd_cancel *cancel)
{
    umd_allocator allocator;
    if (cancel == NULL)
        return;
    allocator = cancel->allocator;
    pthread_mutex_destroy(&cancel->lock);
    umdi_delete(&allocator, cancel);
}
