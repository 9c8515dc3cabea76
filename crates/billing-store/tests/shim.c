/* Decides what a process's syncs do, and writes down what they covered. Preloaded into the store's child process.
 *
 * Entries carry the text "entry-NNNNNNNN;". A pwrite into the watched file notes the largest NNNNNNNN it saw; a sync that
 * succeeds then writes "synced N" to the notes, N being what had been written when the sync began, and "wrote N", the bytes
 * since the sync before. The child itself writes "acked N" to the same notes, so the order in that file is the order in which
 * things happened.
 *
 * SHIM_DIR: the node's folder. SHIM_FILE: the watched file in it. SHIM_NOTES: the notes. SHIM_CONTROL: a file that holds ok,
 * eio (syncs fail) or full (writes fail). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static atomic_long written_max = 0;
static atomic_long unsynced_bytes = 0;

static int watched(int fd) {
    char link[64], path[4096];
    const char *folder = getenv("SHIM_DIR"), *file = getenv("SHIM_FILE");
    if (!folder || !file) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    /* One file, not the high file or whatever else is synced: only that sync makes an entry durable. */
    size_t before = strlen(folder);
    return strncmp(path, folder, before) == 0 && path[before] == '/' && strcmp(path + before + 1, file) == 0;
}

static int control_is(const char *word) {
    char held[16] = {0};
    const char *path = getenv("SHIM_CONTROL");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return 0;
    ssize_t length = read(fd, held, sizeof held - 1);
    close(fd);
    return length > 0 && strncmp(held, word, strlen(word)) == 0;
}

static void note(const char *what, long number) {
    char line[64];
    const char *path = getenv("SHIM_NOTES");
    int fd = path ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600) : -1;
    if (fd < 0) return;
    int length = snprintf(line, sizeof line, "%s %ld\n", what, number);
    if (write(fd, line, length) != length) abort();
    close(fd);
}

static void scan(const char *bytes, size_t length) {
    const char *end = bytes + length, *at = bytes;
    while ((at = memmem(at, end - at, "entry-", 6)) && end - at >= 15) {
        if (at[14] == ';') {
            long number = strtol(at + 6, NULL, 10), before = atomic_load(&written_max);
            while (number > before && !atomic_compare_exchange_weak(&written_max, &before, number)) {}
        }
        at += 6;
    }
}

typedef ssize_t (*pwrite_fn)(int, const void *, size_t, off_t);

static ssize_t write_through(const char *name, int fd, const void *bytes, size_t length, off_t at) {
    pwrite_fn real = (pwrite_fn)dlsym(RTLD_NEXT, name);
    if (!watched(fd)) return real(fd, bytes, length, at);
    if (control_is("full")) {
        note("refused", 0);
        errno = ENOSPC;
        return -1;
    }
    ssize_t done = real(fd, bytes, length, at);
    if (done > 0) {
        scan(bytes, done);
        atomic_fetch_add(&unsynced_bytes, done);
    }
    return done;
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at) { return write_through("pwrite", fd, bytes, length, at); }
ssize_t pwrite64(int fd, const void *bytes, size_t length, off_t at) { return write_through("pwrite64", fd, bytes, length, at); }

static int sync_through(const char *name, int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    if (!watched(fd)) return real(fd);
    long covered = atomic_load(&written_max), wrote = atomic_exchange(&unsynced_bytes, 0);
    if (control_is("eio")) {
        note("failed", covered);
        errno = EIO;
        return -1;
    }
    int result = real(fd);
    if (result == 0) {
        note("synced", covered);
        note("wrote", wrote);
    }
    return result;
}

int fsync(int fd) { return sync_through("fsync", fd); }
int fdatasync(int fd) { return sync_through("fdatasync", fd); }
