/* A guest that uses its disk and says what it found: PID 1, told by its arguments what to do, in their order.
 *
 * Built by the tests: `cc -static -O1 -pthread`. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/fs.h>

enum { WORKERS = 8, BLOCK = 4096, BLOCKS = 512, ROUND = 64, FILE_LEN = 64 << 10 };

static void wrong(const char *what)
{
	printf("\nWRONG %s\n", what);
	pause();
}

static void load_modules(void)
{
	for (char path[] = "/m0"; path[2] <= '9'; path[2]++) {
		int fd = open(path, O_RDONLY);
		if (fd < 0)
			return;
		if (syscall(SYS_finit_module, fd, "", 0) != 0)
			syscall(SYS_finit_module, fd, "", 4 /* decompress */);
		close(fd);
	}
}

static int disk(int flags)
{
	int fd;
	while ((fd = open("/dev/vda", flags)) < 0)
		usleep(10000);
	return fd;
}

static void fill(uint64_t *words, int len, uint64_t seed)
{
	for (int i = 0; i < len / 8; i++)
		words[i] = seed = seed * 6364136223846793005u + 1442695040888963407u;
}

/* One of eight writers, each with a part of the disk: what it wrote last is what it must read. */
static int rounds;
static int done[WORKERS];

static void *worker(void *number)
{
	intptr_t me = (intptr_t)number;
	static uint64_t seeds[WORKERS][BLOCKS];
	int fd = disk(O_RDWR | O_DIRECT);
	char *ours = aligned_alloc(BLOCK, BLOCK), *read_back = aligned_alloc(BLOCK, BLOCK);
	uint64_t dice = me + 1;
	for (int round = 0; round < rounds; round++) {
		for (int i = 0; i < ROUND; i++) {
			dice = dice * 6364136223846793005u + 1442695040888963407u;
			int block = (dice >> 33) % BLOCKS;
			off_t at = ((off_t)me * BLOCKS + block) * BLOCK;
			if (i % 2 == 0) {
				seeds[me][block] = dice;
				fill((uint64_t *)ours, BLOCK, dice);
				if (pwrite(fd, ours, BLOCK, at) != BLOCK)
					wrong("write failed");
			} else if (seeds[me][block] != 0) {
				fill((uint64_t *)ours, BLOCK, seeds[me][block]);
				if (pread(fd, read_back, BLOCK, at) != BLOCK)
					wrong("read failed");
				if (memcmp(ours, read_back, BLOCK) != 0)
					wrong("bytes");
			}
		}
		if (round % 8 == 7 && fsync(fd) != 0)
			wrong("flush failed");
		if (me == 0)
			printf("ROUND %d\n", round);
	}
	__atomic_store_n(&done[me], 1, __ATOMIC_SEQ_CST);
	return NULL;
}

static void verify(void)
{
	pthread_t threads[WORKERS];
	for (intptr_t i = 0; i < WORKERS; i++)
		pthread_create(&threads[i], NULL, worker, (void *)i);
	for (int i = 0; i < WORKERS; i++)
		pthread_join(threads[i], NULL);
	printf("VERIFIED\n");
}

static void mount_disk(void)
{
	close(disk(O_RDONLY));
	mkdir("/mnt", 0755);
	if (mount("/dev/vda", "/mnt", "ext4", 0, "") != 0)
		wrong("mount failed");
}

static void file(int number, int flags)
{
	static char ours[FILE_LEN], found[FILE_LEN];
	char path[64];
	snprintf(path, sizeof path, "/mnt/%d", number % 100 + 1000 * (number / 100));
	fill((uint64_t *)ours, FILE_LEN, number);
	int fd = open(path, flags, 0644);
	if (fd < 0)
		wrong("open failed");
	if (flags & O_CREAT) {
		if (write(fd, ours, FILE_LEN) != FILE_LEN || fsync(fd) != 0)
			wrong("write failed");
		printf("SYNCED %d\n", number);
	} else {
		if (read(fd, found, FILE_LEN) != FILE_LEN)
			wrong("read failed");
		if (memcmp(ours, found, FILE_LEN) != 0)
			wrong("bytes");
	}
	close(fd);
}

/* Says when the disk gets another size. */
static void resized(void)
{
	uint64_t before, now;
	int fd = disk(O_RDONLY);
	ioctl(fd, BLKGETSIZE64, &before);
	printf("WATCHING\n");
	do {
		usleep(10000);
		ioctl(fd, BLKGETSIZE64, &now);
	} while (now == before);
	printf("SIZE %llu\n", (unsigned long long)now);
	close(fd);
}

int main(int argc, char **argv)
{
	mkdir("/dev", 0755);
	mount("dev", "/dev", "devtmpfs", 0, "");
	setvbuf(stdout, NULL, _IOLBF, 0);
	load_modules();
	for (int i = 1; i < argc; i++) {
		char *number = strchr(argv[i], '=');
		int count = number ? atoi(number + 1) : 0;
		if (strncmp(argv[i], "verify=", 7) == 0) {
			rounds = count;
			verify();
		} else if (strncmp(argv[i], "files=", 6) == 0) {
			mount_disk();
			for (int file_number = 1; file_number <= count; file_number++) {
				file(file_number, O_WRONLY | O_CREAT);
				file(file_number, O_RDONLY);
			}
			umount("/mnt");
			printf("WRITTEN\n");
		} else if (strncmp(argv[i], "check=", 6) == 0) {
			mount_disk();
			for (int file_number = 1; file_number <= count; file_number++)
				file(file_number, O_RDONLY);
			umount("/mnt");
			printf("CHECKED\n");
		} else if (strcmp(argv[i], "resized") == 0) {
			resized();
		}
	}
	printf("OVER\n");
	for (;;)
		pause();
}
