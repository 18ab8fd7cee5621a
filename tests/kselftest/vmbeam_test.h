/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the selftests of /dev/vmbeam share.
 */
#ifndef VMBEAM_TEST_H
#define VMBEAM_TEST_H

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

#include <linux/vmbeam.h>
#include <vmbeam_debug.h>

#include "kselftest_harness.h"

#include "domains.h"

#define DEVICE "/dev/vmbeam"
#define FRAMES 64
#define TAG_A 0xaaaa
#define TAG_B 0xbbbb

#define PTR(p) ((__u64)(uintptr_t)(p))

#define EXPECT_FAIL(error, call) do {			\
	errno = 0;					\
	EXPECT_EQ(-1, (call));				\
	EXPECT_EQ((error), errno);			\
} while (0)

/* The two fields that every request begins with. */
struct head {
	__u32 size;
	__u32 flags;
};

/*
 * Start a request: every byte is poison, so that a field which the kernel does
 * not read or write as documented shows.
 */
static inline void poison(void *arg, __u32 size)
{
	struct head *head = arg;

	memset(arg, 0xcc, size);
	head->size = size;
	head->flags = 0;
}

static inline int do_bind_as(int fd, __u32 a, __u32 b, __u32 flags)
{
	struct vmbeam_bind arg;

	poison(&arg, sizeof(arg));
	arg.flags = flags;
	arg.domid_a = a;
	arg.domid_b = b;
	arg.id_a = 0;
	arg.id_b = 0;
	return ioctl(fd, VMBEAM_IOCTL_BIND, &arg);
}

static inline int do_bind(int fd, __u32 a, __u32 b)
{
	return do_bind_as(fd, a, b, 0);
}

/* The same with ids, which come back. */
static inline int do_bind_ids(int fd, __u32 a, __u32 b, __u64 *id_a, __u64 *id_b)
{
	struct vmbeam_bind arg;
	int ret;

	poison(&arg, sizeof(arg));
	arg.domid_a = a;
	arg.domid_b = b;
	arg.id_a = *id_a;
	arg.id_b = *id_b;
	ret = ioctl(fd, VMBEAM_IOCTL_BIND, &arg);
	*id_a = arg.id_a;
	*id_b = arg.id_b;
	return ret;
}

static inline int do_add(int fd, const struct vmbeam_run *runs, __u32 nr,
			 struct vmbeam_add *out)
{
	struct vmbeam_add arg;
	int ret;

	poison(&arg, sizeof(arg));
	arg.runs = PTR(runs);
	arg.nr_runs = nr;
	ret = ioctl(fd, VMBEAM_IOCTL_ADD, &arg);
	if (out)
		*out = arg;
	return ret;
}

/* Close the file and take another. */
#define REOPEN() do {						\
	close(self->fd);					\
	self->fd = open(DEVICE, O_RDWR | O_CLOEXEC);		\
	ASSERT_LE(0, self->fd);					\
} while (0)

static inline int add_one(int fd, __u64 gfn_a, __u64 gfn_b, __u32 nr)
{
	struct vmbeam_run run = { gfn_a, gfn_b, nr, 0 };

	return do_add(fd, &run, 1, NULL);
}

/* A part of a dry run, before which so many frames would have gone over alone. */
static inline int do_check_after(int fd, __u64 first, __u64 nr, __u64 moves_before,
				 __s32 *status, struct vmbeam_check *out)
{
	struct vmbeam_check arg;
	int ret;

	poison(&arg, sizeof(arg));
	arg.first = first;
	arg.nr = nr;
	arg.status = PTR(status);
	arg.moves_before = moves_before;
	ret = ioctl(fd, VMBEAM_IOCTL_CHECK, &arg);
	if (out)
		*out = arg;
	return ret;
}

static inline int do_check(int fd, __u64 first, __u64 nr, __s32 *status,
			   struct vmbeam_check *out)
{
	return do_check_after(fd, first, nr, 0, status, out);
}

static inline int do_commit(int fd, __u64 expected, __u64 nr, __s32 *status,
			    struct vmbeam_commit *out)
{
	struct vmbeam_commit arg;
	int ret;

	poison(&arg, sizeof(arg));
	arg.expected = expected;
	arg.nr = nr;
	arg.status = PTR(status);
	ret = ioctl(fd, VMBEAM_IOCTL_COMMIT, &arg);
	if (out)
		*out = arg;
	return ret;
}

static inline int do_rollback(int fd, __u64 expected, struct vmbeam_rollback *out)
{
	struct vmbeam_rollback arg;
	int ret;

	poison(&arg, sizeof(arg));
	arg.expected = expected;
	ret = ioctl(fd, VMBEAM_IOCTL_ROLLBACK, &arg);
	if (out)
		*out = arg;
	return ret;
}

static inline struct vmbeam_status get_status(int fd)
{
	struct vmbeam_status arg;

	poison(&arg, sizeof(arg));
	if (ioctl(fd, VMBEAM_IOCTL_STATUS, &arg))
		arg.state = UINT32_MAX;
	return arg;
}

static inline int do_cancel(int fd)
{
	struct vmbeam_cancel arg;

	poison(&arg, sizeof(arg));
	return ioctl(fd, VMBEAM_IOCTL_CANCEL, &arg);
}

static inline int do_adopt(int fd, __u64 id)
{
	struct vmbeam_adopt arg;

	poison(&arg, sizeof(arg));
	arg.id = id;
	return ioctl(fd, VMBEAM_IOCTL_ADOPT, &arg);
}

static inline int do_abandon(int fd, __u64 expected, __u64 *cursor)
{
	struct vmbeam_abandon arg;
	int ret;

	poison(&arg, sizeof(arg));
	arg.expected = expected;
	ret = ioctl(fd, VMBEAM_IOCTL_ABANDON, &arg);
	if (cursor)
		*cursor = arg.cursor;
	return ret;
}

static inline int do_record(int fd, __u64 id, struct vmbeam_record *record)
{
	poison(record, sizeof(*record));
	record->id = id;
	return ioctl(fd, VMBEAM_IOCTL_RECORD, record);
}

/* How many records there are, and the last of them. */
static inline int count_records(struct vmbeam_record *last)
{
	int fd = open(DEVICE, O_RDONLY | O_CLOEXEC);
	struct vmbeam_record record;
	__u64 id = 0;
	int nr = 0;

	while (!do_record(fd, id, &record)) {
		id = record.id;
		nr++;
		if (last)
			*last = record;
	}
	close(fd);
	return nr;
}

/* A record would pin the module, and disturb the next test. */
static inline void forget_records(void)
{
	struct vmbeam_record record;
	int fd;

	while (count_records(&record) > 0) {
		fd = open(DEVICE, O_RDWR | O_CLOEXEC);
		if (!do_adopt(fd, record.id))
			do_abandon(fd, record.cursor, NULL);
		close(fd);
	}
}

static inline __u64 features(int fd)
{
	struct vmbeam_info arg;

	poison(&arg, sizeof(arg));
	return ioctl(fd, VMBEAM_IOCTL_INFO, &arg) ? 0 : arg.features;
}

static inline bool has_swap(int fd)
{
	return features(fd) & VMBEAM_FEATURE_SWAP;
}

/* Ask a debug driver who swaps. As ioctl(). */
static inline int ask_model(int fd, struct vmbeam_debug *arg)
{
	*arg = (struct vmbeam_debug){ .op = VMBEAM_DEBUG_MODEL };
	return ioctl(fd, VMBEAM_IOCTL_DEBUG, arg);
}

static inline bool is_debug(int fd)
{
	struct vmbeam_debug arg;

	return !ask_model(fd, &arg);
}

/* Whether what is swapped is a model of a hypervisor. */
static inline bool is_model(int fd)
{
	struct vmbeam_debug arg;

	return !ask_model(fd, &arg) && arg.value;
}

/* Whether the file's fdinfo has the line "vmbeam-@line". */
static inline bool fdinfo_has(int fd, const char *line)
{
	char path[64], text[4096], whole[128];
	FILE *file;
	size_t len;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	snprintf(whole, sizeof(whole), "\nvmbeam-%s\n", line);
	file = fopen(path, "r");
	if (!file)
		return false;
	len = fread(text, 1, sizeof(text) - 1, file);
	fclose(file);
	text[len] = '\0';
	return strstr(text, whole);
}

/* How many records of the kernel's log contain @text. */
static inline int logged(const char *text)
{
	int fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	char record[8192];
	ssize_t len;
	int nr = 0;

	/* EPIPE: older ones than the next have been overwritten. */
	while ((len = read(fd, record, sizeof(record) - 1)) > 0 || errno == EPIPE) {
		record[len > 0 ? len : 0] = '\0';
		nr += !!strstr(record, text);
		errno = 0;
	}
	close(fd);
	return nr;
}

static inline void nothing(int sig)
{
}

/* What a poisoned element of an array of statuses is like. */
#define LEFT_ALONE ((__s32)0xcccccccc)

/* Signals that do nothing but come; none if @usec is 0. */
static inline void interrupt_every(long usec)
{
	struct itimerval timer = {
		.it_value.tv_usec = usec,
		.it_interval.tv_usec = usec,
	};
	struct sigaction action = { .sa_handler = nothing, .sa_flags = SA_RESTART };

	sigaction(SIGALRM, &action, NULL);
	setitimer(ITIMER_REAL, &timer, NULL);
}

/* A page that cannot be accessed follows directly. */
static inline char *page_before_hole(void)
{
	char *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED || mprotect(p + 4096, 4096, PROT_NONE))
		return NULL;
	return p;
}

/* Frames of both domains that do not hold what they did at first. */
static inline long not_home(__u32 a, __u32 b, unsigned long first, unsigned long nr)
{
	long in_a = domain_check(a, TAG_A, first, nr, first);
	long in_b = domain_check(b, TAG_B, first, nr, first);

	return in_a < 0 || in_b < 0 ? -1 : in_a + in_b;
}

/* Frames that do not hold what the same frames of the other domain did. */
static inline long not_away(__u32 a, __u32 b, unsigned long first, unsigned long nr)
{
	return not_home(b, a, first, nr);
}

#define EXPECT_HOME(first, nr) EXPECT_EQ(0, not_home(self->a, self->b, first, nr))
#define EXPECT_AWAY(first, nr) EXPECT_EQ(0, not_away(self->a, self->b, first, nr))

/*
 * Two domains that are filled, and runs from the last frame to the first: one a
 * pair, which do not merge, so that it takes many hypercalls.
 */
static inline int load_backwards(int fd, __u32 a, __u32 b, unsigned int nr)
{
	struct vmbeam_run *runs = calloc(nr, sizeof(*runs));
	unsigned int i;
	int ret = -1;

	if (!runs)
		return -1;
	for (i = 0; i < nr; i++) {
		runs[i].gfn_a = nr - 1 - i;
		runs[i].gfn_b = nr - 1 - i;
		runs[i].nr = 1;
	}
	if (!do_bind(fd, a, b) && !do_add(fd, runs, nr, NULL))
		ret = 0;
	free(runs);
	return ret;
}

#endif /* VMBEAM_TEST_H */
