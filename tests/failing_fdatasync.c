/* Preloaded into billingd by tests/process_badinput.rs: fdatasync fails with EIO once the file $FAIL_FDATASYNC_WHEN exists,
   and every failure appends one byte to $FAIL_FDATASYNC_COUNT. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

int fdatasync(int fd) {
    static int (*real)(int);
    const char *when = getenv("FAIL_FDATASYNC_WHEN");
    const char *count = getenv("FAIL_FDATASYNC_COUNT");
    if (when && access(when, F_OK) == 0) {
        int file = count ? open(count, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
        if (file >= 0) {
            if (write(file, "x", 1) != 1) abort();
            close(file);
        }
        errno = EIO;
        return -1;
    }
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    return real(fd);
}
