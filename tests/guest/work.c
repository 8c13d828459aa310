/* The guest's workload, linked statically: holds memory and file cache, and tells on the console whether both are right.

   work PART[,PART...]    hot:SIZE   anonymous memory, every page of it written ten times a second, and all of it compared now and then
                          cold:SIZE  anonymous memory, written once
                          cache:SIZE files below /data, read once into the page cache
                          idle       nothing

   Prints "ready PART..." when all of it is there. A line "verify" on standard input has everything compared, and answers
   "verified PASS hot=SUM cold=SUM cache=SUM errors=N": the sums of what is there, and how many words or files were ever wrong. A line
   "meminfo" is answered with /proc/meminfo and "end meminfo". */

#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, TOUCHED = 4, MOST_FILES = 4096 };

struct part {
    volatile uint64_t *words;
    uint64_t npages;
};

static struct part hot, cold;
static uint64_t cache_wanted, cache_read, cache_sum, cache_files, pass, errors;

static uint64_t mixed(uint64_t value)
{
    value ^= value >> 30;
    value *= 0xbf58476d1ce4e5b9ull;
    value ^= value >> 27;
    value *= 0x94d049bb133111ebull;
    return value ^ value >> 31;
}

/* What word `word` of page `page` holds after the passes so far: words are rewritten in turn, TOUCHED in each pass. */
static uint64_t expected(uint64_t page, uint64_t word, uint64_t passes)
{
    const uint64_t round = WORDS / TOUCHED, turn = word / TOUCHED;
    const uint64_t written = passes > turn ? (passes - turn - 1) / round + 1 : 0;
    return mixed(page * WORDS + word + (written << 40));
}

static struct part memory(uint64_t size)
{
    struct part part = {NULL, size / PAGE};
    part.words = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (part.words == MAP_FAILED) {
        printf("failed: no memory\n");
        exit(1);
    }
    for (uint64_t page = 0; page < part.npages; page++)
        for (uint64_t word = 0; word < WORDS; word++)
            part.words[page * WORDS + word] = expected(page, word, 0);
    return part;
}

static uint64_t compare(const struct part *part, uint64_t passes)
{
    uint64_t sum = 0;
    for (uint64_t page = 0; page < part->npages; page++)
        for (uint64_t word = 0; word < WORDS; word++) {
            const uint64_t found = part->words[page * WORDS + word];
            errors += found != expected(page, word, passes);
            sum = sum * 31 + found;
        }
    return sum;
}

static void touch(void)
{
    const uint64_t first = pass % (WORDS / TOUCHED) * TOUCHED;
    for (uint64_t page = 0; page < hot.npages; page++)
        for (uint64_t word = first; word < first + TOUCHED; word++) {
            volatile uint64_t *place = &hot.words[page * WORDS + word];
            errors += *place != expected(page, word, pass);
            *place = expected(page, word, pass + 1);
        }
    pass++;
}

static int by_name(const void *left, const void *right)
{
    return strcmp(*(char *const *)left, *(char *const *)right);
}

static uint64_t read_files(uint64_t most, uint64_t *nfiles, uint64_t *nbytes)
{
    static char buffer[1 << 16];
    static char *names[MOST_FILES];
    uint64_t sum = 0, total = 0, count = 0;
    DIR *folder = opendir("/data");
    struct dirent *entry;
    while (folder && (entry = readdir(folder)) && count < MOST_FILES)
        if (entry->d_type == DT_REG)
            names[count++] = strdup(entry->d_name);
    if (folder)
        closedir(folder);
    qsort(names, count, sizeof *names, by_name);
    *nfiles = 0;
    for (uint64_t index = 0; index < count; index++) {
        char path[512];
        ssize_t length;
        snprintf(path, sizeof path, "/data/%s", names[index]);
        free(names[index]);
        if (total >= most)
            continue;
        const int fd = open(path, O_RDONLY);
        while ((length = read(fd, buffer, sizeof buffer)) > 0) {
            for (ssize_t byte = 0; byte < length; byte++)
                sum = sum * 31 + (unsigned char)buffer[byte];
            total += length;
        }
        close(fd);
        (*nfiles)++;
    }
    *nbytes = total;
    return sum;
}

static void verify(void)
{
    const uint64_t hot_sum = compare(&hot, pass), cold_sum = compare(&cold, 0);
    uint64_t sum = cache_sum, files, bytes;
    if (cache_wanted) {
        sum = read_files(cache_wanted, &files, &bytes);
        errors += sum != cache_sum || files != cache_files;
    }
    printf("verified %llu hot=%016llx cold=%016llx cache=%016llx errors=%llu\n", (unsigned long long)pass, (unsigned long long)hot_sum,
           (unsigned long long)cold_sum, (unsigned long long)sum, (unsigned long long)errors);
}

static void meminfo(void)
{
    char line[256];
    FILE *file = fopen("/proc/meminfo", "r");
    while (file && fgets(line, sizeof line, file))
        fputs(line, stdout);
    if (file)
        fclose(file);
    printf("end meminfo\n");
}

static uint64_t size_of(const char *text)
{
    char *unit;
    const uint64_t value = strtoull(text, &unit, 10);
    return value << (*unit == 'G' ? 30 : *unit == 'M' ? 20 : *unit == 'K' ? 10 : 0);
}

int main(int count, char **arguments)
{
    char *parts = strdup(count > 1 ? arguments[1] : "idle");
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (char *part = strtok(parts, ","); part; part = strtok(NULL, ",")) {
        const char *size = strchr(part, ':') ? strchr(part, ':') + 1 : "0";
        if (!strncmp(part, "hot:", 4))
            hot = memory(size_of(size));
        else if (!strncmp(part, "cold:", 5))
            cold = memory(size_of(size));
        else if (!strncmp(part, "cache:", 6)) {
            cache_wanted = size_of(size);
            cache_sum = read_files(cache_wanted, &cache_files, &cache_read);
            if (cache_read < cache_wanted) {
                printf("failed: /data has %llu bytes only\n", (unsigned long long)cache_read);
                return 1;
            }
        } else if (strcmp(part, "idle")) {
            printf("failed: no such work: %s\n", part);
            return 1;
        }
    }
    printf("ready hot=%lluM cold=%lluM cache=%lluM\n", (unsigned long long)hot.npages >> 8, (unsigned long long)cold.npages >> 8,
           (unsigned long long)cache_read >> 20);
    for (;;) {
        struct pollfd input = {0, POLLIN, 0};
        char line[64];
        touch();
        if (poll(&input, 1, 100) > 0) {
            if (!fgets(line, sizeof line, stdin)) {
                sleep(1);
                clearerr(stdin);
            } else if (!strncmp(line, "verify", 6))
                verify();
            else if (!strncmp(line, "meminfo", 7))
                meminfo();
        }
    }
}
