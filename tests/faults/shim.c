/* A library that stands before the C library (LD_PRELOAD) and makes chosen calls to the system fail, or kills the
 * process at them.
 *
 * It counts the calls that touch a path or an open file below one watched folder. A fault is armed for the calls
 * `first` to `last` of this count. Each kind of call has a bit, and a fault is for some kinds only. The functions
 * `faults_*` are called by the Python side, `shim.py`. The counter belongs to a process: a fork begins with its own. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { READS = 1, WRITES = 2, SYNCS = 4, MAKES = 8, DELETES = 16, LOCKS = 32, CLOSES = 64 };
enum mode { NOTHING, KILL_BEFORE, KILL_AFTER, FAIL, SHORT, KILL_WITHIN };

struct fault {
    long first, last;
    int mode, number, kinds;
};

static struct fault faults[4];
static char watched[PATH_MAX];
static size_t watched_length;
static int no_exchange, tells;
static long made, injected;
static char trace[1 << 21], met[1 << 18];
static size_t trace_length, met_length;

/* ---------------------------------------------------------------- the Python side */
void faults_watch(const char *folder)
{
    watched_length = strlen(folder);
    memcpy(watched, folder, watched_length + 1);
    memset(faults, 0, sizeof faults);
    made = injected = 0;
    trace_length = met_length = 0;
    trace[0] = met[0] = 0;
    no_exchange = 0;
}

void faults_arm(int slot, long first, long last_call, int mode, int number, int kinds)
{
    faults[slot] = (struct fault){first, last_call, mode, number, kinds};
}

void faults_disarm(void)
{
    memset(faults, 0, sizeof faults);
    watched_length = 0;
}

/* From now on no two folders can be exchanged, as if the file system did not know how. */
void faults_no_exchange(int number)
{
    no_exchange = number;
}

/* Send this signal to this thread wherever one of the first calls is made to fail, so that Python can tell where. */
void faults_tell(int number)
{
    tells = number;
}

long faults_count(void)
{
    return made;
}

long faults_injected(void)
{
    return injected;
}

const char *faults_trace(void)
{
    return trace;
}

/* The first calls that faults met. */
const char *faults_met(void)
{
    return met;
}

/* ---------------------------------------------------------------- what is watched */
static int is_watched(const char *path)
{
    if (!watched_length || strncmp(path, watched, watched_length) != 0)
        return 0;
    char end = path[watched_length];
    return end == 0 || end == '/';
}

/* The path of an open file, if it is watched. */
static const char *of(int descriptor)
{
    static __thread char path[PATH_MAX];
    char name[40];
    if (!watched_length || descriptor < 0)
        return NULL;
    int before = errno;
    snprintf(name, sizeof name, "/proc/self/fd/%d", descriptor);
    long length = syscall(SYS_readlinkat, AT_FDCWD, name, path, sizeof path - 1);
    errno = before;
    if (length <= 0)
        return NULL;
    path[length] = 0;
    return is_watched(path) ? path : NULL;
}

/* A path as a call takes it, if it is watched. Relative to the working directory, nothing is. */
static const char *at(int folder, const char *path)
{
    static __thread char joined[PATH_MAX];
    if (!watched_length || path == NULL)
        return NULL;
    if (path[0] == '/')
        return is_watched(path) ? path : NULL;
    const char *base = folder == AT_FDCWD ? NULL : of(folder);
    if (base == NULL)
        return NULL;
    snprintf(joined, sizeof joined, "%s/%s", base, path);
    return joined;
}

/* ---------------------------------------------------------------- faults */
static void end(void)
{
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;)
        pause();
}

/* Count a call and look whether a fault is armed for it. FAIL has set errno. */
static int enter(int kind, const char *name, const char *path)
{
    long call = __sync_add_and_fetch(&made, 1);
    if (trace_length + 8192 < sizeof trace)
        trace_length += (size_t)snprintf(trace + trace_length, 8192, "%d\t%s\t%s\n", kind, name, path);
    for (int i = 0; i < 4; i++) {
        struct fault *fault = &faults[i];
        if (fault->mode == NOTHING || call < fault->first || call > fault->last || !(fault->kinds & kind))
            continue;
        injected++;
        int is_told = met_length + 8192 < sizeof met;
        if (is_told)
            met_length += (size_t)snprintf(met + met_length, 8192, "%s\t%s\t%d\n", name, path, fault->number);
        if (fault->mode == KILL_BEFORE)
            end();
        if (tells && is_told)
            raise(tells);
        if (fault->mode == FAIL)
            errno = fault->number;
        return fault->mode;
    }
    return NOTHING;
}

static void leave(int mode)
{
    if (mode == KILL_AFTER || mode == KILL_WITHIN)
        end();
}

#define REAL(name) \
    static __typeof__(name) *real; \
    if (real == NULL) \
        real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

/* A call that returns `failed` where it fails. */
#define WRAP(type, failed, kind, name, where, parameters, arguments) \
    type name parameters \
    { \
        REAL(name); \
        const char *touched = where; \
        if (touched == NULL) \
            return real arguments; \
        int mode = enter(kind, #name, touched); \
        if (mode == FAIL) \
            return failed; \
        type result = real arguments; \
        leave(mode); \
        return result; \
    }

/* A call that moves `size` bytes. SHORT moves half of them, KILL_WITHIN too, and then the process dies. */
#define WRAP_BYTES(kind, name, parameters, arguments) \
    ssize_t name parameters \
    { \
        REAL(name); \
        const char *touched = of(fd); \
        if (touched == NULL) \
            return real arguments; \
        int mode = enter(kind, #name, touched); \
        if (mode == FAIL) \
            return -1; \
        if ((mode == SHORT || mode == KILL_WITHIN) && size > 1) \
            size /= 2; \
        ssize_t result = real arguments; \
        leave(mode); \
        return result; \
    }

#define OPENING(flags) ((flags) & (O_CREAT | O_TRUNC) ? MAKES : READS)

#define WRAP_OPEN(name, folder, parameters, arguments) \
    int name parameters \
    { \
        REAL(name); \
        int permissions = 0; \
        if (flags & (O_CREAT | __O_TMPFILE)) { \
            va_list rest; \
            va_start(rest, flags); \
            permissions = va_arg(rest, int); \
            va_end(rest); \
        } \
        const char *touched = at(folder, path); \
        if (touched == NULL) \
            return real arguments; \
        int mode = enter(OPENING(flags), OPENING(flags) == MAKES ? #name "+" : #name, touched); \
        if (mode == FAIL) \
            return -1; \
        int result = real arguments; \
        leave(mode); \
        return result; \
    }

WRAP_OPEN(open, AT_FDCWD, (const char *path, int flags, ...), (path, flags, permissions))
WRAP_OPEN(open64, AT_FDCWD, (const char *path, int flags, ...), (path, flags, permissions))
WRAP_OPEN(openat, folder, (int folder, const char *path, int flags, ...), (folder, path, flags, permissions))
WRAP_OPEN(openat64, folder, (int folder, const char *path, int flags, ...), (folder, path, flags, permissions))

WRAP_BYTES(READS, read, (int fd, void *data, size_t size), (fd, data, size))
WRAP_BYTES(READS, pread, (int fd, void *data, size_t size, off_t from), (fd, data, size, from))
WRAP_BYTES(READS, pread64, (int fd, void *data, size_t size, off64_t from), (fd, data, size, from))
WRAP_BYTES(WRITES, write, (int fd, const void *data, size_t size), (fd, data, size))
WRAP_BYTES(WRITES, pwrite, (int fd, const void *data, size_t size, off_t from), (fd, data, size, from))
WRAP_BYTES(WRITES, pwrite64, (int fd, const void *data, size_t size, off64_t from), (fd, data, size, from))

/* The first piece alone, shortened, is what a SHORT call moves. */
#define WRAP_PIECES(kind, name, parameters, arguments) \
    ssize_t name parameters \
    { \
        REAL(name); \
        const char *touched = of(fd); \
        if (touched == NULL) \
            return real arguments; \
        int mode = enter(kind, #name, touched); \
        if (mode == FAIL) \
            return -1; \
        struct iovec one; \
        if ((mode == SHORT || mode == KILL_WITHIN) && count > 0 && pieces[0].iov_len > 1) { \
            one = (struct iovec){pieces[0].iov_base, pieces[0].iov_len / 2}; \
            pieces = &one; \
            count = 1; \
        } \
        ssize_t result = real arguments; \
        leave(mode); \
        return result; \
    }

#define PIECES int fd, const struct iovec *pieces, int count
WRAP_PIECES(READS, readv, (PIECES), (fd, pieces, count))
WRAP_PIECES(READS, preadv, (PIECES, off_t from), (fd, pieces, count, from))
WRAP_PIECES(READS, preadv64, (PIECES, off64_t from), (fd, pieces, count, from))
WRAP_PIECES(READS, preadv2, (PIECES, off_t from, int flags), (fd, pieces, count, from, flags))
WRAP_PIECES(READS, preadv64v2, (PIECES, off64_t from, int flags), (fd, pieces, count, from, flags))
WRAP_PIECES(WRITES, writev, (PIECES), (fd, pieces, count))
WRAP_PIECES(WRITES, pwritev, (PIECES, off_t from), (fd, pieces, count, from))
WRAP_PIECES(WRITES, pwritev64, (PIECES, off64_t from), (fd, pieces, count, from))

WRAP(int, -1, SYNCS, fsync, of(fd), (int fd), (fd))
WRAP(int, -1, SYNCS, fdatasync, of(fd), (int fd), (fd))
WRAP(int, -1, WRITES, ftruncate, of(fd), (int fd, off_t size), (fd, size))
WRAP(int, -1, WRITES, ftruncate64, of(fd), (int fd, off64_t size), (fd, size))
WRAP(int, -1, WRITES, truncate, at(AT_FDCWD, path), (const char *path, off_t size), (path, size))
WRAP(int, -1, WRITES, truncate64, at(AT_FDCWD, path), (const char *path, off64_t size), (path, size))
WRAP(int, errno, WRITES, posix_fallocate, of(fd), (int fd, off_t from, off_t size), (fd, from, size))
WRAP(int, errno, WRITES, posix_fallocate64, of(fd), (int fd, off64_t from, off64_t size), (fd, from, size))
WRAP(ssize_t, -1, WRITES, copy_file_range, of(to), (int from, off64_t *a, int to, off64_t *b, size_t n, unsigned f),
     (from, a, to, b, n, f))

WRAP(int, -1, MAKES, rename, at(AT_FDCWD, old), (const char *old, const char *new), (old, new))
WRAP(int, -1, MAKES, renameat, at(a, old), (int a, const char *old, int b, const char *new), (a, old, b, new))
WRAP(int, -1, MAKES, link, at(AT_FDCWD, new), (const char *old, const char *new), (old, new))
WRAP(int, -1, MAKES, linkat, at(b, new), (int a, const char *old, int b, const char *new, int f), (a, old, b, new, f))
WRAP(int, -1, MAKES, symlink, at(AT_FDCWD, new), (const char *old, const char *new), (old, new))
WRAP(int, -1, MAKES, mkdir, at(AT_FDCWD, path), (const char *path, mode_t m), (path, m))
WRAP(int, -1, MAKES, mkdirat, at(folder, path), (int folder, const char *path, mode_t m), (folder, path, m))
WRAP(int, -1, MAKES, chmod, at(AT_FDCWD, path), (const char *path, mode_t m), (path, m))
WRAP(int, -1, MAKES, fchmod, of(fd), (int fd, mode_t m), (fd, m))
WRAP(int, -1, MAKES, fchmodat, at(folder, path), (int folder, const char *path, mode_t m, int f), (folder, path, m, f))
WRAP(int, -1, DELETES, unlink, at(AT_FDCWD, path), (const char *path), (path))
WRAP(int, -1, DELETES, unlinkat, at(folder, path), (int folder, const char *path, int flags), (folder, path, flags))
WRAP(int, -1, DELETES, rmdir, at(AT_FDCWD, path), (const char *path), (path))

int renameat2(int a, const char *old, int b, const char *new, unsigned flags)
{
    REAL(renameat2);
    const char *touched = at(a, old);
    if (touched == NULL)
        return real(a, old, b, new, flags);
    int mode = enter(MAKES, "renameat2", touched);
    if (mode == FAIL)
        return -1;
    if (no_exchange) {
        errno = no_exchange;
        return -1;
    }
    int result = real(a, old, b, new, flags);
    leave(mode);
    return result;
}

WRAP(int, -1, READS, access, at(AT_FDCWD, path), (const char *path, int m), (path, m))
WRAP(int, -1, READS, faccessat, at(folder, path), (int folder, const char *path, int m, int f), (folder, path, m, f))
WRAP(int, -1, READS, stat, at(AT_FDCWD, path), (const char *path, struct stat *s), (path, s))
WRAP(int, -1, READS, stat64, at(AT_FDCWD, path), (const char *path, struct stat64 *s), (path, s))
WRAP(int, -1, READS, lstat, at(AT_FDCWD, path), (const char *path, struct stat *s), (path, s))
WRAP(int, -1, READS, lstat64, at(AT_FDCWD, path), (const char *path, struct stat64 *s), (path, s))
WRAP(int, -1, READS, fstat, of(fd), (int fd, struct stat *s), (fd, s))
WRAP(int, -1, READS, fstat64, of(fd), (int fd, struct stat64 *s), (fd, s))
WRAP(int, -1, READS, fstatat, at(d, path), (int d, const char *path, struct stat *s, int f), (d, path, s, f))
WRAP(int, -1, READS, fstatat64, at(d, path), (int d, const char *path, struct stat64 *s, int f), (d, path, s, f))
WRAP(DIR *, NULL, READS, opendir, at(AT_FDCWD, path), (const char *path), (path))
WRAP(DIR *, NULL, READS, fdopendir, of(fd), (int fd), (fd))
WRAP(struct dirent *, NULL, READS, readdir, of(dirfd(folder)), (DIR *folder), (folder))
WRAP(struct dirent64 *, NULL, READS, readdir64, of(dirfd(folder)), (DIR *folder), (folder))
WRAP(void *, MAP_FAILED, READS, mmap, of(fd), (void *a, size_t n, int p, int flags, int fd, off_t o),
     (a, n, p, flags, fd, o))
WRAP(void *, MAP_FAILED, READS, mmap64, of(fd), (void *a, size_t n, int p, int flags, int fd, off64_t o),
     (a, n, p, flags, fd, o))

WRAP(int, -1, LOCKS, flock, of(fd), (int fd, int operation), (fd, operation))

/* Only locks of fcntl count: its other commands do not reach the disk. */
#define WRAP_FCNTL(name) \
    int name(int fd, int command, ...) \
    { \
        REAL(name); \
        va_list rest; \
        va_start(rest, command); \
        void *argument = va_arg(rest, void *); \
        va_end(rest); \
        int locks = command == F_SETLK || command == F_SETLKW || command == F_OFD_SETLK || command == F_OFD_SETLKW; \
        const char *touched = locks ? of(fd) : NULL; \
        if (touched == NULL) \
            return real(fd, command, argument); \
        int mode = enter(LOCKS, #name, touched); \
        if (mode == FAIL) \
            return -1; \
        int result = real(fd, command, argument); \
        leave(mode); \
        return result; \
    }
WRAP_FCNTL(fcntl)
WRAP_FCNTL(fcntl64)

/* Linux releases the descriptor whatever close answers. */
int close(int fd)
{
    REAL(close);
    const char *touched = of(fd);
    if (touched == NULL)
        return real(fd);
    int mode = enter(CLOSES, "close", touched), number = errno;
    int result = real(fd);
    leave(mode);
    if (mode == FAIL) {
        errno = number;
        return -1;
    }
    return result;
}
