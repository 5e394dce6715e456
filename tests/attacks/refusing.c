/* Preloaded into a process: syncing a folder and locking a file fail as on the file systems of some clusters. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>

static int from_environment(const char *name) {
    const char *value = getenv(name);
    return value == NULL ? 0 : atoi(value);
}

int fsync(int descriptor) {
    struct stat status;
    int code = from_environment("REFUSED_FSYNC");
    if (code != 0 && fstat(descriptor, &status) == 0 && S_ISDIR(status.st_mode)) {
        errno = code;
        return -1;
    }
    int (*original)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    return original(descriptor);
}

static int control(const char *name, int descriptor, int command, void *argument) {
    int code = from_environment("REFUSED_LOCK");
    if (code != 0 && (command == F_SETLK || command == F_SETLKW)) {
        errno = code;
        return -1;
    }
    int (*original)(int, int, ...) = (int (*)(int, int, ...))dlsym(RTLD_NEXT, name);
    return original(descriptor, command, argument);
}

int fcntl(int descriptor, int command, ...) {
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    return control("fcntl", descriptor, command, argument);
}

int fcntl64(int descriptor, int command, ...) {
    va_list arguments;
    va_start(arguments, command);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    return control("fcntl64", descriptor, command, argument);
}
