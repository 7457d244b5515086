/* The functions of the CUDA runtime that are used, on the host's memory. Compiled by test_cudart.py. */
#include <stdlib.h>
#include <string.h>

static int capturing = 0, launches = 0, last_error = 0;
static double now = 0;
/* Handles lie above 4 GiB, as pointers do: an argument that is cut to 32 bits is not found again. */
static char *const STREAM = (char *)0x7000000000ull, *const GRAPH = (char *)0x7100000000ull;

const char *cudaGetErrorName(int code) {
    return code == 2 ? "cudaErrorMemoryAllocation" : code == 1 ? "cudaErrorInvalidValue" : "cudaErrorUnknown";
}
static int fail(int code) { return last_error = code; }
int cudaGetLastError(void) { int code = last_error; last_error = 0; return code; }
int cudaDriverGetVersion(int *version) { *version = DRIVER; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = RUNTIME; return 0; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    if (device) return fail(1);
    switch (attribute) {
        case 16: *value = 8; return 0;
        case 18: *value = INTEGRATED; return 0;
        case 75: *value = 8; return 0;
        case 76: *value = 7; return 0;
        default: return fail(1);
    }
}
int cudaGetDeviceProperties(char *properties, int device) {
    if (device) return fail(1);
    memset(properties, 'x', 1032); /* the size of the structure in CUDA 12 */
    strcpy(properties, "Orin");
    return 0;
}
int cudaMemGetInfo(size_t *available, size_t *total) {
    *available = 5ull << 30;
    *total = 7ull << 30;
    return 0;
}
int cudaMalloc(void **address, size_t size) {
    if (size > (6ull << 30)) return fail(2);
    *address = malloc(size);
    return 0;
}
int cudaMallocHost(void **address, size_t size) { return cudaMalloc(address, size); }
int cudaFree(void *address) { free(address); return 0; }
int cudaFreeHost(void *address) { free(address); return 0; }
int cudaStreamCreate(void **stream) { *stream = STREAM; return 0; }
int cudaStreamSynchronize(void *stream) { return stream == STREAM ? 0 : fail(1); }
int cudaMemcpyAsync(void *target, const void *source, size_t size, int kind, void *stream) {
    if (stream != STREAM || kind != 4) return fail(1);
    if (!capturing) memcpy(target, source, size);
    return 0;
}
int cudaEventCreate(void **event) { *event = malloc(sizeof(double)); return 0; }
int cudaEventCreateWithFlags(void **event, unsigned flags) { return flags == 2 ? cudaEventCreate(event) : fail(1); }
int cudaEventDestroy(void *event) { free(event); return 0; }
int cudaEventRecord(void *event, void *stream) { *(double *)event = now += 1.5; return stream == STREAM ? 0 : fail(1); }
int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) {
    return stream == STREAM && event && !flags ? 0 : fail(1);
}
int cudaEventElapsedTime(float *milliseconds, void *begin, void *end) {
    *milliseconds = *(double *)end - *(double *)begin;
    return 0;
}
int cudaStreamBeginCapture(void *stream, int mode) { return stream == STREAM && mode == 1 ? capturing = 1, 0 : fail(1); }
int cudaStreamEndCapture(void *stream, void **graph) { capturing = 0; *graph = GRAPH; return stream == STREAM ? 0 : fail(1); }
int cudaGraphInstantiateWithFlags(void **executable, void *graph, unsigned long long flags) {
    *executable = GRAPH + 1;
    return graph == GRAPH && !flags ? 0 : fail(1);
}
int cudaGraphDestroy(void *graph) { return graph == GRAPH ? 0 : fail(1); }
int cudaGraphLaunch(void *executable, void *stream) { return executable == GRAPH + 1 && stream == STREAM ? launches++, 0 : fail(1); }
int cudaGraphExecDestroy(void *executable) { return executable == GRAPH + 1 ? 0 : fail(1); }
int launched(void) { return launches; }
