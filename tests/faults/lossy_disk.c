/* Decides what is left of files when the power goes: a file system in front of a folder, where a file's bytes reach the folder
 * when it is synced and not before. `lossy_disk BACK MOUNT SEED`, in the foreground, until it is unmounted or the power goes.
 *
 * The power goes when somebody creates the file /power-off in it. Of each page that was written and not synced it then decides
 * by the seed: lost, kept, or torn (its first sectors kept). So what was written later may be there and what was written before
 * may not, as on a real disk. The process ends at that moment, whatever it was asked to do.
 *
 * Simpler than a disk: a file's name (creating, renaming, removing) is durable at once. One thread; whole files in memory. */
#define FUSE_USE_VERSION 31
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define PAGE 4096
#define SECTOR 512
#define FILES_MAX 1024

struct held {
    char *path;
    unsigned char *bytes;
    size_t size, room;
    unsigned char *dirty; /* One for each page of `room`. */
    int size_dirty;
};

static const char *back;
static struct held files[FILES_MAX];
static unsigned long long state;

static unsigned long long drawn(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static void die(const char *what) {
    perror(what);
    _exit(1);
}

/* Where `path` lies in the folder. Two at a time at most. */
static const char *below(const char *path) {
    static char room[2][PAGE];
    static int turn;
    turn = !turn;
    snprintf(room[turn], PAGE, "%s%s", back, path);
    return room[turn];
}

static struct held *find(const char *path) {
    for (int at = 0; at < FILES_MAX; at++)
        if (files[at].path && strcmp(files[at].path, path) == 0) return &files[at];
    return NULL;
}

static void grow(struct held *file, size_t size) {
    if (size <= file->room) return;
    size_t room = file->room ? file->room : 16 * PAGE;
    while (room < size) room *= 2;
    file->bytes = realloc(file->bytes, room);
    file->dirty = realloc(file->dirty, room / PAGE);
    if (!file->bytes || !file->dirty) die("memory");
    memset(file->bytes + file->room, 0, room - file->room);
    memset(file->dirty + file->room / PAGE, 0, (room - file->room) / PAGE);
    file->room = room;
}

/* The file as it is now, read from the folder when it is first asked for. */
static struct held *hold(const char *path) {
    struct held *file = find(path);
    struct stat there;
    if (file) return file;
    for (int at = 0; at < FILES_MAX && !file; at++)
        if (!files[at].path) file = &files[at];
    if (!file) {
        errno = ENFILE;
        die("too many files");
    }
    int fd = open(below(path), O_RDONLY);
    if (fd < 0 || fstat(fd, &there) < 0) return NULL;
    memset(file, 0, sizeof *file);
    grow(file, there.st_size ? there.st_size : 1);
    for (size_t done = 0; done < (size_t)there.st_size;) {
        ssize_t got = pread(fd, file->bytes + done, there.st_size - done, done);
        if (got <= 0) die("reading the folder");
        done += got;
    }
    close(fd);
    file->size = there.st_size;
    file->path = strdup(path);
    return file;
}

static void let_go(struct held *file) {
    free(file->path);
    free(file->bytes);
    free(file->dirty);
    memset(file, 0, sizeof *file);
}

static void put(int fd, const unsigned char *bytes, size_t length, off_t at) {
    while (length > 0) {
        ssize_t done = pwrite(fd, bytes, length, at);
        if (done <= 0) die("writing the folder");
        bytes += done, length -= done, at += done;
    }
}

/* Brings dirty pages into the folder: all of them, or what chance leaves of them. */
static void bring(struct held *file, int all) {
    int fd = open(below(file->path), O_RDWR);
    if (fd < 0) return;
    int resized = file->size_dirty && (all || drawn() % 2);
    struct stat there;
    if (resized && ftruncate(fd, file->size) < 0) die("truncating");
    if (fstat(fd, &there) < 0) die("looking");
    for (size_t page = 0; page * PAGE < file->size; page++) {
        if (!file->dirty[page]) continue;
        size_t from = page * PAGE, length = file->size - from < PAGE ? file->size - from : PAGE;
        unsigned long long fate = all ? 0 : drawn() % 4;
        if (fate == 1 || fate == 2) continue; /* Lost. */
        if (fate == 3) length = length < SECTOR ? length : SECTOR * (1 + drawn() % (PAGE / SECTOR));
        if (length > file->size - from) length = file->size - from;
        /* Where the new size was lost, so was all beyond the old one. */
        if (!resized && file->size_dirty && from >= (size_t)there.st_size) continue;
        put(fd, file->bytes + from, length, from);
        if (all) file->dirty[page] = 0;
    }
    if (all) file->size_dirty = 0;
    close(fd);
}

static int answer(int result) { return result < 0 ? -errno : 0; }

static int get_attributes(const char *path, struct stat *found, struct fuse_file_info *info) {
    (void)info;
    if (lstat(below(path), found) < 0) return -errno;
    struct held *file = find(path);
    if (file) found->st_size = file->size;
    return 0;
}

static int read_folder(const char *path, void *into, fuse_fill_dir_t fill, off_t at, struct fuse_file_info *info,
                       enum fuse_readdir_flags flags) {
    (void)at, (void)info, (void)flags;
    DIR *folder = opendir(below(path));
    if (!folder) return -errno;
    for (struct dirent *entry; (entry = readdir(folder));) fill(into, entry->d_name, NULL, 0, 0);
    closedir(folder);
    return 0;
}

static int make_folder(const char *path, mode_t mode) { return answer(mkdir(below(path), mode)); }
static int remove_folder(const char *path) { return answer(rmdir(below(path))); }

static int remove_file(const char *path) {
    struct held *file = find(path);
    if (file) let_go(file);
    return answer(unlink(below(path)));
}

static int rename_file(const char *from, const char *to, unsigned flags) {
    struct held *file = find(from), *over = find(to);
    if (flags) return -EINVAL;
    if (rename(below(from), below(to)) < 0) return -errno;
    if (over) let_go(over);
    if (file) {
        free(file->path);
        file->path = strdup(to);
    }
    return 0;
}

static int create_file(const char *path, mode_t mode, struct fuse_file_info *info) {
    (void)info;
    if (strcmp(path, "/power-off") == 0) {
        for (int at = 0; at < FILES_MAX; at++)
            if (files[at].path) bring(&files[at], 0);
        _exit(0);
    }
    int fd = open(below(path), O_RDWR | O_CREAT, mode);
    if (fd < 0) return -errno;
    close(fd);
    return hold(path) ? 0 : -errno;
}

static int truncate_file(const char *path, off_t size, struct fuse_file_info *info) {
    (void)info;
    struct held *file = hold(path);
    if (!file) return -errno;
    grow(file, size ? size : 1);
    if ((size_t)size < file->size) {
        memset(file->bytes + size, 0, file->size - size);
        /* The rest of the last page is zeroes now, also where the page itself stays. */
        if (size % PAGE) file->dirty[size / PAGE] = 1;
    }
    if ((size_t)size != file->size) file->size_dirty = 1;
    file->size = size;
    return 0;
}

static int open_file(const char *path, struct fuse_file_info *info) {
    if (!hold(path)) return -errno;
    return info->flags & O_TRUNC ? truncate_file(path, 0, info) : 0;
}

static int read_file(const char *path, char *into, size_t length, off_t at, struct fuse_file_info *info) {
    (void)info;
    struct held *file = hold(path);
    if (!file) return -errno;
    if ((size_t)at >= file->size) return 0;
    if (length > file->size - at) length = file->size - at;
    memcpy(into, file->bytes + at, length);
    return length;
}

static int write_file(const char *path, const char *bytes, size_t length, off_t at, struct fuse_file_info *info) {
    (void)info;
    struct held *file = hold(path);
    if (!file) return -errno;
    if (length == 0) return 0;
    grow(file, at + length);
    memcpy(file->bytes + at, bytes, length);
    for (size_t page = at / PAGE; page <= (at + length - 1) / PAGE; page++) file->dirty[page] = 1;
    if (at + length > file->size) {
        file->size = at + length;
        file->size_dirty = 1;
    }
    return length;
}

static int sync_file(const char *path, int data_only, struct fuse_file_info *info) {
    (void)data_only, (void)info;
    struct held *file = find(path);
    if (file) bring(file, 1);
    return 0;
}

static int sync_folder(const char *path, int data_only, struct fuse_file_info *info) {
    (void)path, (void)data_only, (void)info;
    return 0; /* Names are durable at once. */
}

static int change_mode(const char *path, mode_t mode, struct fuse_file_info *info) {
    (void)info;
    return answer(chmod(below(path), mode));
}

static int get_room(const char *path, struct statvfs *found) {
    (void)path;
    return answer(statvfs(back, found));
}

static const struct fuse_operations operations = {
    .getattr = get_attributes,
    .readdir = read_folder,
    .mkdir = make_folder,
    .rmdir = remove_folder,
    .unlink = remove_file,
    .rename = rename_file,
    .create = create_file,
    .open = open_file,
    .truncate = truncate_file,
    .read = read_file,
    .write = write_file,
    .fsync = sync_file,
    .fsyncdir = sync_folder,
    .chmod = change_mode,
    .statfs = get_room,
};

int main(int count, char **words) {
    if (count != 4) {
        fprintf(stderr, "usage: lossy_disk BACK MOUNT SEED\n");
        return 2;
    }
    back = realpath(words[1], NULL);
    if (!back) die(words[1]);
    state = strtoull(words[3], NULL, 10) | 1;
    /* In the foreground, one thread, and nothing remembered by the kernel that we do not know. */
    char *own[] = {words[0], words[2], "-f", "-s", "-o", "attr_timeout=0,entry_timeout=0,negative_timeout=0", NULL};
    return fuse_main(6, own, &operations, NULL);
}
