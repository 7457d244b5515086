/* Make the n-th call of one kind on files of one folder fail, for the process and its children.

   Preloaded. `fail_at` chooses the call, counting from now; `fail_count` tells how many there were. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char kind[16], folder[PATH_MAX];
static long left = -1, met;
static int number;

void fail_at(const char *which, const char *under, long nth, int error) {
    snprintf(kind, sizeof kind, "%s", which);
    snprintf(folder, sizeof folder, "%s", under);
    left = nth;
    met = 0;
    number = error;
}

long fail_count(void) { return met; }

static int is_due(const char *which, const char *path) {
    if (left < 0 || strcmp(which, kind) || strncmp(path, folder, strlen(folder))) return 0;
    met++;
    if (left == 0 || --left > 0) return 0;
    errno = number;
    return 1;
}

static int is_due_on(const char *which, int file) {
    char link[64], path[PATH_MAX];
    if (left < 0 || strcmp(which, kind)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_due(which, path);
}

#define NEXT(type, name, ...) ((type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))

#define ON_FILE(type, name, which, parameters, arguments, ...)      \
    type name parameters {                                          \
        static type (*next)(__VA_ARGS__);                           \
        if (!next) next = NEXT(type, name, __VA_ARGS__);            \
        return is_due_on(which, file) ? -1 : next arguments;        \
    }

#define ON_PATH(name)                                               \
    int name(const char *from, const char *to) {                    \
        static int (*next)(const char *, const char *);             \
        if (!next) next = NEXT(int, name, const char *, const char *); \
        return is_due(#name, to) ? -1 : next(from, to);             \
    }

ON_FILE(ssize_t, read, "read", (int file, void *to, size_t size), (file, to, size), int, void *, size_t)
ON_FILE(ssize_t, pread, "pread", (int file, void *to, size_t size, off_t at), (file, to, size, at), int, void *, size_t, off_t)
ON_FILE(ssize_t, pread64, "pread", (int file, void *to, size_t size, off64_t at), (file, to, size, at), int, void *, size_t, off64_t)
ON_FILE(ssize_t, write, "write", (int file, const void *from, size_t size), (file, from, size), int, const void *, size_t)
ON_FILE(ssize_t, pwrite, "write", (int file, const void *from, size_t size, off_t at), (file, from, size, at), int, const void *, size_t, off_t)
ON_FILE(ssize_t, pwrite64, "write", (int file, const void *from, size_t size, off64_t at), (file, from, size, at), int, const void *, size_t, off64_t)
ON_FILE(int, fsync, "fsync", (int file), (file), int)
ON_FILE(int, fdatasync, "fsync", (int file), (file), int)
ON_PATH(rename)
ON_PATH(link)
