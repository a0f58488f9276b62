/* Faults at system calls, and a record of them: LD_PRELOAD this into a process, then torture_arm.
 *
 * Counts the calls that change something below a folder. At call number `at` it returns an error, or
 * writes but a part, or kills the process before or after the call. Each call that succeeded is noted
 * in a log, if there is one, with the bytes that were written.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NOTHING, ERROR, SHORT, KILL_BEFORE, KILL_AFTER };

struct shared { /* a page that the parent reads when this process is dead */
    long count, hits;
    char call[64], path[1024];
};

static struct { char folder[PATH_MAX]; size_t length; long at; int kind, error, sticky, log; } plan;
static struct shared *shared;
static int armed;
static pthread_mutex_t mutex = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

static ssize_t raw_write(int fd, const void *data, size_t size) {
    REAL(write);
    return real(fd, data, size);
}

#pragma GCC diagnostic ignored "-Wformat-truncation"
static void absolute(int folder, const char *path, char *out) {
    char base[PATH_MAX] = "";
    if (path[0] != '/') {
        if (folder == AT_FDCWD) {
            if (!getcwd(base, sizeof base)) base[0] = 0;
        } else {
            char link[64];
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
            ssize_t size = readlink(link, base, sizeof base - 1);
            base[size < 0 ? 0 : size] = 0;
        }
    }
    snprintf(out, PATH_MAX, "%s%s%s", base, base[0] && path[0] ? "/" : "", path);
}

static int concerns(const char *path) {
    return armed && !strncmp(path, plan.folder, plan.length)
        && (path[plan.length] == '/' || !path[plan.length]);
}

/* Count a call. Returns whether the fault is due; an error before the call is in errno then. */
static int due(const char *call, const char *path) {
    long number = ++shared->count;
    if (!plan.at || !(number == plan.at || (plan.sticky && number > plan.at))) return NOTHING;
    shared->hits++;
    if (number == plan.at) {
        snprintf(shared->call, sizeof shared->call, "%s", call);
        snprintf(shared->path, sizeof shared->path, "%s", path);
    }
    if (plan.kind == KILL_BEFORE) { kill(getpid(), SIGKILL); pause(); }
    if (plan.kind == ERROR) errno = plan.error;
    return plan.kind;
}

static void after(int kind) {
    if (kind == KILL_AFTER) { kill(getpid(), SIGKILL); pause(); }
}

static long inode(int fd, const char *path) {
    struct stat found;
    int result = fd >= 0 ? fstat(fd, &found) : lstat(path, &found);
    return result ? 0 : (long)found.st_ino;
}

static void note(const char *call, long which, const char *path, const char *other, long offset,
                 const void *data, size_t size) {
    if (plan.log < 0) return;
    char line[3 * PATH_MAX];
    int length = snprintf(line, sizeof line, "%s\t%ld\t%s\t%s\t%ld\t%zu\n", call, which, path, other,
                          offset, size);
    int before = errno;
    raw_write(plan.log, line, length);
    if (size) raw_write(plan.log, data, size);
    raw_write(plan.log, "\n", 1);
    errno = before;
}

void torture_arm(const char *folder, long at, int kind, int error, int sticky, int log, void *page) {
    snprintf(plan.folder, sizeof plan.folder, "%s", folder);
    plan.length = strlen(folder);
    plan.at = at; plan.kind = kind; plan.error = error; plan.sticky = sticky; plan.log = log;
    shared = page;
    armed = 1;
}

void torture_disarm(void) { armed = 0; }

void torture_mark(const char *text) { note("mark", 0, text, "", 0, "", 0); }

/* A call that changes names; BODY gives `result`, -1 for a failure. */
#define CHANGE(CALL, FOLDER, PATH, BODY, NOTE) \
    char full[PATH_MAX]; \
    int result; \
    if (!armed) { BODY; return result; } \
    absolute(FOLDER, PATH, full); \
    if (!concerns(full)) { BODY; return result; } \
    pthread_mutex_lock(&mutex); \
    int kind = due(CALL, full); \
    if (kind == ERROR) result = -1; \
    else { \
        BODY; \
        int saved = errno; \
        if (result >= 0) { NOTE; } \
        after(kind); \
        errno = saved; \
    } \
    pthread_mutex_unlock(&mutex); \
    return result

static int opened(int folder, const char *path, int flags, mode_t mode) {
    REAL(openat);
    if (!armed || !(flags & (O_CREAT | O_TRUNC))) return real(folder, path, flags, mode);
    long was = 0;
    CHANGE("open", folder, path,
           if (armed && plan.log >= 0) { absolute(folder, path, full); was = inode(-1, full); }
           result = real(folder, path, flags, mode),
           if (!was) note("create", inode(result, ""), full, "", 0, "", 0);
           else if (flags & O_TRUNC) note("truncate", was, full, "", 0, "", 0));
}

#define OPEN_MODE va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest)
int open(const char *path, int flags, ...) { OPEN_MODE; return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { OPEN_MODE; return opened(AT_FDCWD, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { OPEN_MODE; return opened(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { OPEN_MODE; return opened(folder, path, flags, mode); }

int mkdirat(int folder, const char *path, mode_t mode) {
    REAL(mkdirat);
    CHANGE("mkdir", folder, path, result = real(folder, path, mode),
           note("mkdir", inode(-1, full), full, "", 0, "", 0));
}
int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }

int unlinkat(int folder, const char *path, int flags) {
    REAL(unlinkat);
    CHANGE("unlink", folder, path, result = real(folder, path, flags),
           note("unlink", 0, full, "", 0, "", 0));
}
int unlink(const char *path) { return unlinkat(AT_FDCWD, path, 0); }
int rmdir(const char *path) { return unlinkat(AT_FDCWD, path, AT_REMOVEDIR); }

int renameat2(int from, const char *path, int to, const char *other, unsigned flags) {
    REAL(renameat2);
    char target[PATH_MAX];
    absolute(to, other, target);
    CHANGE(flags ? "renameat2" : "rename", from, path, result = real(from, path, to, other, flags),
           note(flags & RENAME_EXCHANGE ? "exchange" : "rename", inode(-1, target), full, target, 0,
                "", 0));
}
int renameat(int from, const char *path, int to, const char *other) { return renameat2(from, path, to, other, 0); }
int rename(const char *path, const char *other) { return renameat2(AT_FDCWD, path, AT_FDCWD, other, 0); }

int linkat(int from, const char *path, int to, const char *other, int flags) {
    REAL(linkat);
    char target[PATH_MAX];
    absolute(to, other, target);
    CHANGE("link", from, path, result = real(from, path, to, other, flags),
           note("link", inode(-1, target), full, target, 0, "", 0));
}
int link(const char *path, const char *other) { return linkat(AT_FDCWD, path, AT_FDCWD, other, 0); }

int symlinkat(const char *content, int folder, const char *path) {
    REAL(symlinkat);
    CHANGE("symlink", folder, path, result = real(content, folder, path), (void)0);
}
int symlink(const char *content, const char *path) { return symlinkat(content, AT_FDCWD, path); }

int fchmodat(int folder, const char *path, mode_t mode, int flags) {
    REAL(fchmodat);
    CHANGE("chmod", folder, path, result = real(folder, path, mode, flags), (void)0);
}
int chmod(const char *path, mode_t mode) { return fchmodat(AT_FDCWD, path, mode, 0); }
int fchmod(int fd, mode_t mode) {
    REAL(fchmod);
    CHANGE("fchmod", fd, "", result = real(fd, mode), (void)0);
}
int utimensat(int folder, const char *path, const struct timespec times[2], int flags) {
    REAL(utimensat);
    CHANGE("utimens", folder, path, result = real(folder, path, times, flags), (void)0);
}
int futimens(int fd, const struct timespec times[2]) {
    REAL(futimens);
    CHANGE("utimens", fd, "", result = real(fd, times), (void)0);
}
int fsync(int fd) {
    REAL(fsync);
    CHANGE("fsync", fd, "", result = real(fd), note("fsync", inode(fd, ""), full, "", 0, "", 0));
}
int fdatasync(int fd) {
    REAL(fdatasync);
    CHANGE("fsync", fd, "", result = real(fd), note("fsync", inode(fd, ""), full, "", 0, "", 0));
}
int ftruncate64(int fd, off64_t size) {
    REAL(ftruncate64);
    CHANGE("ftruncate", fd, "", result = real(fd, size),
           note("truncate", inode(fd, ""), full, "", size, "", 0));
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }
int fallocate64(int fd, int mode, off64_t start, off64_t size) {
    REAL(fallocate64);
    CHANGE("fallocate", fd, "", result = real(fd, mode, start, size), (void)0);
}
int fallocate(int fd, int mode, off_t start, off_t size) { return fallocate64(fd, mode, start, size); }
int posix_fallocate64(int fd, off64_t start, off64_t size) {
    REAL(posix_fallocate64);
    CHANGE("fallocate", fd, "", result = real(fd, start, size); if (result) { errno = result; },
           (void)0);
}
int posix_fallocate(int fd, off_t start, off_t size) { return posix_fallocate64(fd, start, size); }

/* What came by other ways than a write is read back for the log. */
static void note_range(int fd, const char *path, off64_t offset, size_t size) {
    if (plan.log < 0 || !size) return;
    char *data = malloc(size);
    ssize_t got = pread64(fd, data, size, offset);
    note("write", inode(fd, ""), path, "", offset, data, got < 0 ? 0 : got);
    free(data);
}

int ioctl(int fd, unsigned long request, ...) {
    REAL(ioctl);
    va_list rest;
    va_start(rest, request);
    void *argument = va_arg(rest, void *);
    va_end(rest);
    if (request != FICLONE && request != FICLONERANGE) return real(fd, request, argument);
    struct file_clone_range *range = argument;
    CHANGE("ioctl", fd, "", result = real(fd, request, argument),
           if (request == FICLONERANGE) note_range(fd, full, range->dest_offset, range->src_length));
}

/* A call that writes SIZE bytes at OFFSET (-1: where the file stands). */
#define WRITE(CALL, FD, SIZE, OFFSET, BODY, SHORTER, NOTE) \
    char full[PATH_MAX]; \
    ssize_t result; \
    if (!armed) { BODY; return result; } \
    absolute(FD, "", full); \
    if (!concerns(full)) { BODY; return result; } \
    pthread_mutex_lock(&mutex); \
    int kind = due(CALL, full); \
    if (kind == ERROR) result = -1; \
    else { \
        off64_t begin = (OFFSET) >= 0 ? (off64_t)(OFFSET) : lseek64(FD, 0, SEEK_CUR); \
        if (kind == SHORT && (SIZE) > 1) { SHORTER; } else { BODY; } \
        int saved = errno; \
        if (result > 0) { NOTE; } \
        (void)begin; \
        after(kind); \
        errno = saved; \
    } \
    pthread_mutex_unlock(&mutex); \
    return result

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    WRITE("write", fd, size, -1, result = real(fd, data, size), result = real(fd, data, size / 2),
          note("write", inode(fd, ""), full, "", begin, data, result));
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    REAL(pwrite64);
    WRITE("pwrite", fd, size, offset, result = real(fd, data, size, offset),
          result = real(fd, data, size / 2, offset),
          note("write", inode(fd, ""), full, "", begin, data, result));
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return pwrite64(fd, data, size, offset); }
ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    struct iovec half = {parts[0].iov_base, (parts[0].iov_len + 1) / 2};
    WRITE("writev", fd, (size_t)2, -1, result = real(fd, parts, count), result = real(fd, &half, 1),
          note_range(fd, full, begin, result));
}
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t size, unsigned flags) {
    REAL(copy_file_range);
    WRITE("copy_file_range", out, size, to ? *to : -1, result = real(in, from, out, to, size, flags),
          result = real(in, from, out, to, size / 2, flags), note_range(out, full, begin, result));
}
ssize_t sendfile64(int out, int in, off64_t *from, size_t size) {
    REAL(sendfile64);
    WRITE("sendfile", out, size, -1, result = real(out, in, from, size),
          result = real(out, in, from, size / 2), note_range(out, full, begin, result));
}
ssize_t sendfile(int out, int in, off_t *from, size_t size) { return sendfile64(out, in, from, size); }
