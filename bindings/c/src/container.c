#define _POSIX_C_SOURCE 200809L
#define _FILE_OFFSET_BITS 64
#include "container.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "zip.h"

#define MAX_PATH_BYTES 4096

static bool join(char out[MAX_PATH_BYTES], const char *root, const char *name)
{
    int length = snprintf(out, MAX_PATH_BYTES, "%s/%s", root, name);
    return length > 0 && length < MAX_PATH_BYTES;
}

static umd_status no_access(const char *path)
{
    if (errno == ENOENT || errno == ENOTDIR)
        return umdi_fail(UMD_ERROR_BUNDLE_NOT_FOUND,
                         "no bundle at '%s'; give the path of a .umd file or of a bundle's "
                         "directory",
                         path);
    return umdi_fail(UMD_ERROR_BUNDLE, "bundle '%s' cannot be read: %s", path, strerror(errno));
}

static umd_status add_file(umdi_container *container, const char *name, const struct stat *facts)
{
    umdi_entry *entry;
    if (!S_ISREG(facts->st_mode))
        return umdi_fail(UMD_ERROR_BUNDLE_INTEGRITY,
                         "'%s' is a link or a special file; a bundle holds plain files only", name);
    if (container->count == UMDI_MAX_FILES + 2)
        return umdi_fail(UMD_ERROR_BUNDLE_INTEGRITY, "more than %d files in the bundle",
                         UMDI_MAX_FILES + 2);
    entry = &container->entries[container->count++];
    entry->size = (uint64_t)facts->st_size;
    entry->name.length = strlen(name);
    entry->name.text = umdi_arena_copy(container->arena, name, entry->name.length);
    return entry->name.text != NULL ? UMD_OK : UMD_ERROR_OUT_OF_MEMORY;
}

static umd_status scan(umdi_container *container, const char *folder);

static umd_status scan_entry(umdi_container *container, const char *folder, const char *base)
{
    char name[MAX_PATH_BYTES], path[MAX_PATH_BYTES];
    struct stat facts;
    if (folder[0] == '\0')
        snprintf(name, sizeof name, "%s", base);
    else if (!join(name, folder, base))
        return umdi_fail(UMD_ERROR_BUNDLE_INTEGRITY, "the bundle holds a path that is too long");
    if (!umdi_is_safe_path(umdi_of(name)))
        return umdi_fail(UMD_ERROR_BUNDLE_INTEGRITY,
                         "the bundle holds a file named '%.200s': names of letters, digits, '_', "
                         "'-', '.' are allowed",
                         name);
    if (!join(path, container->path, name) || lstat(path, &facts) != 0)
        return umdi_fail(UMD_ERROR_BUNDLE_INTEGRITY, "'%s' of the bundle cannot be read", name);
    if (S_ISDIR(facts.st_mode))
        return scan(container, name);
    return add_file(container, name, &facts);
}

static umd_status scan(umdi_container *container, const char *folder)
{
    char path[MAX_PATH_BYTES];
    umd_status status = UMD_OK;
    DIR *directory = NULL;
    if (join(path, container->path, folder))
        directory = opendir(path);
    if (directory == NULL)
        return umdi_fail(UMD_ERROR_BUNDLE, "a folder of the bundle cannot be read");
    /* The depth is bounded by the rule for safe paths. */
    while (status == UMD_OK) {
        struct dirent *entry = readdir(directory);
        if (entry == NULL)
            break;
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            status = scan_entry(container, folder, entry->d_name);
    }
    closedir(directory);
    return status;
}

umd_status umdi_container_open(umdi_container *container, umdi_arena *arena, const char *path)
{
    struct stat facts;
    FILE *file;
    umd_status status;
    memset(container, 0, sizeof *container);
    container->arena = arena;
    if (strlen(path) >= MAX_PATH_BYTES)
        return umdi_fail(UMD_ERROR_BUNDLE_NOT_FOUND, "the path of the bundle is too long");
    if (stat(path, &facts) != 0)
        return no_access(path);
    container->path = umdi_arena_copy(arena, path, strlen(path));
    container->entries = umdi_arena_new(arena, UMDI_MAX_FILES + 2, sizeof *container->entries);
    if (container->path == NULL || container->entries == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    container->is_directory = S_ISDIR(facts.st_mode);
    if (container->is_directory)
        return scan(container, "");
    if (!S_ISREG(facts.st_mode))
        return umdi_fail(UMD_ERROR_BUNDLE_INTEGRITY, "'%s' is neither a file nor a directory",
                         path);
    container->size = (uint64_t)facts.st_size;
    file = fopen(path, "rb");
    if (file == NULL)
        return no_access(path);
    umdi_source source = {file, NULL, container->size};
    status = umdi_zip_index(container, &source);
    fclose(file);
    return status;
}

umd_status umdi_container_open_memory(umdi_container *container, umdi_arena *arena,
                                      const void *bytes, size_t size)
{
    umdi_source source = {NULL, bytes, size};
    memset(container, 0, sizeof *container);
    container->arena = arena;
    container->bytes = bytes;
    container->size = size;
    container->entries = umdi_arena_new(arena, UMDI_MAX_FILES + 2, sizeof *container->entries);
    if (container->entries == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    return umdi_zip_index(container, &source);
}

const umdi_entry *umdi_container_find(const umdi_container *container, umdi_text name)
{
    for (size_t i = 0; i < container->count; i++)
        if (umdi_compare(container->entries[i].name, name) == 0)
            return &container->entries[i];
    return NULL;
}

/* A plain file below the bundle's directory; a link put there after the scan is not followed. */
static FILE *open_inside(const umdi_container *container, const umdi_entry *entry)
{
    char path[MAX_PATH_BYTES];
    struct stat facts;
    FILE *file;
    int descriptor;
    if (!join(path, container->path, entry->name.text))
        return NULL;
    descriptor = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (descriptor < 0)
        return NULL;
    if (fstat(descriptor, &facts) != 0 || !S_ISREG(facts.st_mode) ||
        (file = fdopen(descriptor, "rb")) == NULL) {
        close(descriptor);
        return NULL;
    }
    return file;
}

umd_status umdi_container_read(const umdi_container *container, const umdi_entry *entry,
                               uint8_t **bytes)
{
    umdi_source source = {NULL, container->bytes, container->size};
    uint8_t *data;
    bool whole;
    *bytes = NULL;
    if (entry->size > UMDI_MAX_FILE_BYTES)
        return umdi_fail(UMD_ERROR_BUNDLE_INTEGRITY, "'%s' has more than 2 GiB", entry->name.text);
    if (container->is_directory) {
        source.file = open_inside(container, entry);
        source.size = entry->size;
    } else if (container->path != NULL) {
        source.file = fopen(container->path, "rb");
    }
    if (container->path != NULL && source.file == NULL)
        return umdi_fail(UMD_ERROR_BUNDLE_INTEGRITY, "'%s' of the bundle cannot be opened",
                         entry->name.text);
    data = umdi_new(&container->arena->allocator, (size_t)entry->size + 1, 1);
    whole = data != NULL && umdi_source_read(&source, entry->offset, data, (size_t)entry->size);
    if (source.file != NULL)
        fclose(source.file);
    if (data == NULL)
        return UMD_ERROR_OUT_OF_MEMORY;
    if (!whole || (!container->is_directory &&
                   umdi_crc32(data, (size_t)entry->size) != entry->crc)) {
        umdi_delete(&container->arena->allocator, data);
        return umdi_fail(UMD_ERROR_BUNDLE_INTEGRITY,
                         "'%s' ends early or is damaged (CRC-32 differs); copy the bundle again",
                         entry->name.text);
    }
    *bytes = data;
    return UMD_OK;
}
