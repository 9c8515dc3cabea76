/* Decides how a node's disk misbehaves while the node runs. Preloaded into billingd by the process tests.
 *
 * DISK_FAULTS names a file with the disk's state, read again at every write and sync; no file, or "ok": the disk is well.
 *   eio        syncs fail
 *   full       writes find no room
 *   slow MS    a sync takes that many milliseconds longer
 * DISK_FAULTS_IN: only files below this folder are concerned, so that the node's log on standard error is not. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int concerned(int fd) {
    char link[64], path[4096];
    const char *folder = getenv("DISK_FAULTS_IN");
    if (!folder) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    size_t before = strlen(folder);
    if (length <= (ssize_t)before) return 0;
    return memcmp(path, folder, before) == 0 && path[before] == '/';
}

/* What the control file says, into `state`; empty when it says nothing. */
static void read_state(char *state, size_t room) {
    state[0] = 0;
    const char *control = getenv("DISK_FAULTS");
    int fd = control ? open(control, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    ssize_t length = read(fd, state, room - 1);
    close(fd);
    state[length > 0 ? length : 0] = 0;
}

static int full(int fd) {
    char state[32];
    if (!concerned(fd)) return 0;
    read_state(state, sizeof state);
    return strncmp(state, "full", 4) == 0;
}

typedef ssize_t (*write_fn)(int, const void *, size_t);
typedef ssize_t (*pwrite_fn)(int, const void *, size_t, off_t);

ssize_t write(int fd, const void *bytes, size_t length) {
    static write_fn real;
    if (!real) real = (write_fn)dlsym(RTLD_NEXT, "write");
    if (full(fd)) {
        errno = ENOSPC;
        return -1;
    }
    return real(fd, bytes, length);
}

static ssize_t write_at(const char *name, int fd, const void *bytes, size_t length, off_t at) {
    pwrite_fn real = (pwrite_fn)dlsym(RTLD_NEXT, name);
    if (full(fd)) {
        errno = ENOSPC;
        return -1;
    }
    return real(fd, bytes, length, at);
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at) { return write_at("pwrite", fd, bytes, length, at); }
ssize_t pwrite64(int fd, const void *bytes, size_t length, off_t at) { return write_at("pwrite64", fd, bytes, length, at); }

static int sync_as(const char *name, int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    char state[32];
    long ms;
    if (!concerned(fd)) return real(fd);
    read_state(state, sizeof state);
    if (strncmp(state, "eio", 3) == 0) {
        errno = EIO;
        return -1;
    }
    if (sscanf(state, "slow %ld", &ms) == 1) {
        struct timespec longer = {ms / 1000, ms % 1000 * 1000000};
        nanosleep(&longer, NULL);
    }
    return real(fd);
}

int fsync(int fd) { return sync_as("fsync", fd); }
int fdatasync(int fd) { return sync_as("fdatasync", fd); }
