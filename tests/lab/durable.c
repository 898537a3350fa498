/* What of a folder's files would be there after the power was lost: an interposed layer for tests (LD_PRELOAD).

   RAYKEEPER_TEST_DISK names the folder, RAYKEEPER_TEST_DURABLE another one on the same file system, where

     inodes/<n>  is the content of the file with that inode as of its last fsync or fdatasync, each range that was
                 written since the one before copied when the call has succeeded;
     dirs/<n>    lists the entries of a directory as of its last fsync, a line "<inode> <d or f> <name>" for each;
     keep/<n>    is a hard link to the file, so that no inode is given again while a list may still name it.

   Nothing else is durable: not a new file's entry, not a rename, not what was written and not synced. The process that
   is traced pays for the copies; it sees nothing of them.

   And reads that answer EIO now and then: RAYKEEPER_TEST_READS names a file that all processes have mapped (struct
   reads). A read of a file in its folder is refused, at once, or after half of what was asked for: then the call says
   how much there was, as a disk with a bad sector does, and the thread's next read of that file is refused. Covered are
   read, pread, readv, preadv, preadv2 and fread_unlocked (RocksDB reads its CURRENT and MANIFEST by that one). What a
   process has mapped into its memory is not: there an error is a signal; nor is io_uring. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define FILES 4096
#define RANGES 32

struct file {
    ino_t inode;
    int known; /* 0 until this process has synced it: what another one wrote before is in the same page cache */
    int ranges;
    off_t from[RANGES], to[RANGES]; /* written since the last sync */
};

static struct file files[FILES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *disk, *durable;
static size_t disk_length;

struct reads {
    uint32_t chance; /* of 2^32; 0: none is refused */
    uint32_t unused;
    uint64_t refused, halves; /* how many were, at once and after a half */
    char folder[4000];
};

static struct reads *reads;
static __thread ino_t bad; /* the file whose next read on this thread is refused */
static __thread uint64_t dice;

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

__attribute__((constructor)) static void begin(void)
{
    disk = getenv("RAYKEEPER_TEST_DISK");
    durable = getenv("RAYKEEPER_TEST_DURABLE");
    disk_length = disk ? strlen(disk) : 0;
    const char *table = getenv("RAYKEEPER_TEST_READS");
    int fd = table ? open(table, O_RDWR | O_CLOEXEC) : -1;
    if (fd >= 0) {
        void *found = mmap(0, sizeof *reads, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        reads = found == MAP_FAILED ? 0 : found;
        close(fd);
    }
}

static void broken(const char *what)
{
    perror(what);
    _exit(98); /* a layer that loses something would blame the product */
}

/* Whether a descriptor is of a file or folder in this one. */
static int within(const char *folder, size_t length, int fd, struct stat *found, mode_t kind)
{
    char link[64], path[PATH_MAX];
    if (fstat(fd, found) || (found->st_mode & S_IFMT) != kind)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t end = readlink(link, path, sizeof path - 1);
    if (end < 0)
        return 0;
    path[end] = 0;
    return !strncmp(path, folder, length) && (path[length] == '/' || !path[length]);
}

static int ours(int fd, struct stat *found, mode_t kind)
{
    return disk && durable && within(disk, disk_length, fd, found, kind);
}

/* Under the lock. A file that nobody has written to through this layer is new here, and all of it is to be copied. */
static struct file *look_up(int fd, ino_t inode)
{
    char link[64], keep[PATH_MAX];
    for (size_t n = 0, at = inode % FILES; n < FILES; n++, at = (at + 1) % FILES) {
        if (files[at].inode == inode)
            return &files[at];
        if (!files[at].inode) {
            snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
            snprintf(keep, sizeof keep, "%s/keep/%lu", durable, (unsigned long)inode);
            linkat(AT_FDCWD, link, AT_FDCWD, keep, AT_SYMLINK_FOLLOW); /* it may be there, or have no name any more */
            files[at].inode = inode;
            return &files[at];
        }
    }
    errno = ENFILE;
    broken("durable: too many files");
    return 0;
}

static void wrote(int fd, off_t from, off_t to)
{
    struct stat found;
    int before = errno;
    if (from < to && ours(fd, &found, S_IFREG)) {
        pthread_mutex_lock(&lock);
        struct file *file = look_up(fd, found.st_ino);
        int n = file->ranges;
        if (n && file->from[n - 1] <= to && from <= file->to[n - 1])
            n--; /* it goes on where the last one was */
        else if (n < RANGES) {
            file->from[n] = from;
            file->to[n] = to;
            file->ranges = n + 1;
        } else
            n--;
        if (from < file->from[n])
            file->from[n] = from;
        if (to > file->to[n])
            file->to[n] = to;
        pthread_mutex_unlock(&lock);
    }
    errno = before;
}

static ssize_t write_at(int fd, const void *data, size_t size, off_t at)
{
    REAL(pwrite);
    return real(fd, data, size, at);
}

static void copy(int from, int to, off_t at, off_t end)
{
    static __thread char block[1 << 16];
    while (at < end) {
        size_t most = end - at < (off_t)sizeof block ? (size_t)(end - at) : sizeof block;
        REAL(pread);
        ssize_t got = real(from, block, most, at);
        if (got < 0)
            broken("durable: read");
        if (!got)
            return; /* it was cut since */
        if (write_at(to, block, got, at) != got)
            broken("durable: write");
        at += got;
    }
}

static void synced_file(int fd, const struct stat *found)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/inodes/%lu", durable, (unsigned long)found->st_ino);
    pthread_mutex_lock(&lock);
    struct file *file = look_up(fd, found->st_ino);
    int fresh = access(path, F_OK);
    int to = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    char reading[64];
    snprintf(reading, sizeof reading, "/proc/self/fd/%d", fd);
    int from = open(reading, O_RDONLY | O_CLOEXEC);
    if (to < 0 || from < 0)
        broken("durable: open");
    if (fresh || !file->known)
        copy(from, to, 0, found->st_size);
    else
        for (int n = 0; n < file->ranges; n++)
            copy(from, to, file->from[n], file->to[n]);
    file->ranges = 0;
    file->known = 1;
    REAL(ftruncate);
    if (real(to, found->st_size))
        broken("durable: truncate");
    close(to);
    close(from);
    pthread_mutex_unlock(&lock);
}

static void synced_folder(int fd, const struct stat *found)
{
    char path[PATH_MAX], next[PATH_MAX + 16];
    int copied = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *folder = copied < 0 ? 0 : fdopendir(copied);
    if (!folder)
        return; /* it was removed */
    snprintf(path, sizeof path, "%s/dirs/%lu", durable, (unsigned long)found->st_ino);
    pthread_mutex_lock(&lock);
    snprintf(next, sizeof next, "%s.%d", path, getpid());
    FILE *list = fopen(next, "we");
    if (!list)
        broken("durable: list");
    for (struct dirent *entry; (entry = readdir(folder));)
        if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
            fprintf(list, "%lu %c %s\n", (unsigned long)entry->d_ino, entry->d_type == DT_DIR ? 'd' : 'f', entry->d_name);
    if (fclose(list) || rename(next, path))
        broken("durable: list");
    pthread_mutex_unlock(&lock);
    closedir(folder);
}

static int synced(int fd, int result)
{
    struct stat found;
    int before = errno;
    if (!result) {
        if (ours(fd, &found, S_IFREG))
            synced_file(fd, &found);
        else if (ours(fd, &found, S_IFDIR))
            synced_folder(fd, &found);
    }
    errno = before;
    return result;
}

int fsync(int fd) { REAL(fsync); return synced(fd, real(fd)); }
int fdatasync(int fd) { REAL(fdatasync); return synced(fd, real(fd)); }

static ssize_t moved(int fd, ssize_t done)
{
    if (done > 0) {
        int before = errno;
        off_t at = lseek(fd, 0, SEEK_CUR);
        errno = before;
        if (at >= 0)
            wrote(fd, at - done, at);
    }
    return done;
}

ssize_t write(int fd, const void *data, size_t size) { REAL(write); return moved(fd, real(fd, data, size)); }
ssize_t writev(int fd, const struct iovec *parts, int many) { REAL(writev); return moved(fd, real(fd, parts, many)); }

ssize_t pwrite(int fd, const void *data, size_t size, off_t at)
{
    REAL(pwrite);
    ssize_t done = real(fd, data, size, at);
    wrote(fd, at, at + (done > 0 ? done : 0));
    return done;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) { return pwrite(fd, data, size, at); }

ssize_t pwritev(int fd, const struct iovec *parts, int many, off_t at)
{
    REAL(pwritev);
    ssize_t done = real(fd, parts, many, at);
    wrote(fd, at, at + (done > 0 ? done : 0));
    return done;
}

ssize_t pwritev64(int fd, const struct iovec *parts, int many, off64_t at) { return pwritev(fd, parts, many, at); }

ssize_t pwritev2(int fd, const struct iovec *parts, int many, off_t at, int flags)
{
    REAL(pwritev2);
    ssize_t done = real(fd, parts, many, at, flags);
    if (at < 0)
        return moved(fd, done);
    wrote(fd, at, at + (done > 0 ? done : 0));
    return done;
}

ssize_t pwritev64v2(int fd, const struct iovec *parts, int many, off64_t at, int flags)
{
    return pwritev2(fd, parts, many, at, flags);
}

ssize_t sendfile(int to, int from, off_t *at, size_t size)
{
    REAL(sendfile);
    return moved(to, real(to, from, at, size));
}

ssize_t sendfile64(int to, int from, off64_t *at, size_t size) { return sendfile(to, from, at, size); }

ssize_t copy_file_range(int from, off64_t *there, int to, off64_t *here, size_t size, unsigned flags)
{
    REAL(copy_file_range);
    off64_t at = here ? *here : -1;
    ssize_t done = real(from, there, to, here, size, flags);
    if (at < 0)
        return moved(to, done);
    wrote(to, at, at + (done > 0 ? done : 0));
    return done;
}

/* A cut and a growth change content, too: what lies between the old end and the new one. */
int ftruncate(int fd, off_t size)
{
    struct stat before;
    int known = !fstat(fd, &before);
    REAL(ftruncate);
    int result = real(fd, size);
    if (!result && known)
        wrote(fd, size < before.st_size ? size : before.st_size, size < before.st_size ? before.st_size : size);
    return result;
}

int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

/* --- reads that are refused -------------------------------------------------------------------------------------- */

static uint32_t draw(void)
{
    if (!dice)
        dice = (uint64_t)(uintptr_t)&dice ^ ((uint64_t)getpid() << 32) ^ (uint64_t)pthread_self() ^ 0x9e3779b97f4a7c15u;
    dice ^= dice << 13, dice ^= dice >> 7, dice ^= dice << 17;
    return (uint32_t)(dice >> 32);
}

/* How many bytes a read of so many may bring: all of them, half, or -1 with EIO. */
static ssize_t granted(int fd, size_t size)
{
    struct stat found;
    uint32_t chance = reads ? __atomic_load_n(&reads->chance, __ATOMIC_RELAXED) : 0;
    int before = errno;
    if (!chance || !size || !within(reads->folder, strlen(reads->folder), fd, &found, S_IFREG)) {
        errno = before;
        return size;
    }
    errno = before;
    if (bad == found.st_ino) {
        bad = 0;
    } else {
        if (draw() >= chance)
            return size;
        if (size > 1 && draw() % 2) {
            bad = found.st_ino;
            __atomic_add_fetch(&reads->halves, 1, __ATOMIC_RELAXED);
            return size / 2;
        }
    }
    __atomic_add_fetch(&reads->refused, 1, __ATOMIC_RELAXED);
    errno = EIO;
    return -1;
}

ssize_t read(int fd, void *into, size_t size)
{
    REAL(read);
    ssize_t most = granted(fd, size);
    return most < 0 ? -1 : real(fd, into, most);
}

ssize_t pread(int fd, void *into, size_t size, off_t at)
{
    REAL(pread);
    ssize_t most = granted(fd, size);
    return most < 0 ? -1 : real(fd, into, most, at);
}

ssize_t pread64(int fd, void *into, size_t size, off64_t at) { return pread(fd, into, size, at); }

/* Into several parts: all or nothing. */
ssize_t readv(int fd, const struct iovec *parts, int many)
{
    REAL(readv);
    return granted(fd, 1) < 0 ? -1 : real(fd, parts, many);
}

ssize_t preadv(int fd, const struct iovec *parts, int many, off_t at)
{
    REAL(preadv);
    return granted(fd, 1) < 0 ? -1 : real(fd, parts, many, at);
}

ssize_t preadv64(int fd, const struct iovec *parts, int many, off64_t at) { return preadv(fd, parts, many, at); }

ssize_t preadv2(int fd, const struct iovec *parts, int many, off_t at, int flags)
{
    REAL(preadv2);
    return granted(fd, 1) < 0 ? -1 : real(fd, parts, many, at, flags);
}

ssize_t preadv64v2(int fd, const struct iovec *parts, int many, off64_t at, int flags)
{
    return preadv2(fd, parts, many, at, flags);
}

#undef fread_unlocked
/* It says how many there were, and there is no end of the file. */
size_t fread_unlocked(void *into, size_t size, size_t many, FILE *file)
{
    REAL(fread_unlocked);
    ssize_t most = granted(fileno(file), many > 1 ? many : 1);
    if (most < 0)
        return 0;
    return real(into, size, many > 1 ? (size_t)most : many, file);
}
