// SPDX-License-Identifier: GPL-2.0-only
/*
 * Selftest of /dev/vmbeam: faults. Needs a debug driver (VMBEAM_DEBUG=y), which
 * lets any allocation and any hypercall fail on request.
 */

#include <poll.h>
#include <sys/socket.h>

#include "vmbeam_inject.h"

#define MANY 3000
/* Runs in one hypercall: see BATCH_RUNS in the driver. */
#define BATCH 512

/* More than any test has allocations or hypercalls. */
#define ENOUGH 1000

FIXTURE(fault) {
	int fd;
	__u32 a, b;
};

FIXTURE_SETUP(fault)
{
	self->a = NO_DOMAIN;
	self->b = NO_DOMAIN;
	self->fd = open(DEVICE, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->fd);
	if (!is_debug(self->fd))
		SKIP(return, "not a debug driver");
	debug_device = open(DEVICE, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, debug_device);
	ASSERT_EQ(0, domains_open(is_model(self->fd)));
	ASSERT_EQ(0, count_records(NULL));
	self->a = domain_create(DOMAIN_HAP, MANY);
	self->b = domain_create(DOMAIN_HAP, MANY);
	ASSERT_NE(NO_DOMAIN, self->a);
	ASSERT_NE(NO_DOMAIN, self->b);
	ASSERT_EQ(0, domain_fill(self->a, TAG_A, 0, MANY));
	ASSERT_EQ(0, domain_fill(self->b, TAG_B, 0, MANY));
}

FIXTURE_TEARDOWN(fault)
{
	no_faults();
	close(self->fd);
	forget_records();
	domain_destroy(self->a);
	domain_destroy(self->b);
	domains_close();
	close(debug_device);
}

/* ---- Every allocation ---- */

TEST_F(fault, alloc_open_file)
{
	unsigned int nth;

	for (nth = 1; nth < ENOUGH; nth++) {
		int fd;

		fail_alloc(nth);
		fd = open(DEVICE, O_RDWR | O_CLOEXEC);
		if (!happened(VMBEAM_DEBUG_FAIL_ALLOC)) {
			EXPECT_LE(0, fd);
			close(fd);
			break;
		}
		EXPECT_EQ(-1, fd);
		EXPECT_EQ(ENOMEM, errno);
	}
	EXPECT_LT(2, nth);
	EXPECT_GT(ENOUGH, nth);
}

TEST_F(fault, alloc_bind)
{
	unsigned int nth;

	for (nth = 1; nth < ENOUGH; nth++) {
		int ret;

		fail_alloc(nth);
		ret = do_bind(self->fd, self->a, self->b);
		if (!happened(VMBEAM_DEBUG_FAIL_ALLOC)) {
			EXPECT_EQ(0, ret);
			break;
		}
		EXPECT_EQ(-1, ret);
		EXPECT_EQ(ENOMEM, errno);
		EXPECT_EQ(VMBEAM_STATE_UNBOUND, get_status(self->fd).state);
	}
	EXPECT_LT(3, nth);
	EXPECT_GT(ENOUGH, nth);
}

TEST_F(fault, alloc_add)
{
	struct vmbeam_run runs[3] = { { 0, 0, 1, 0 }, { 5, 9, 3, 0 }, { 20, 1, 2, 0 } };
	struct vmbeam_add add;
	unsigned int nth;

	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	for (nth = 1; nth < ENOUGH; nth++) {
		int ret;

		fail_alloc(nth);
		ret = do_add(self->fd, runs, 3, &add);
		if (!happened(VMBEAM_DEBUG_FAIL_ALLOC)) {
			EXPECT_EQ(0, ret);
			EXPECT_EQ(3, add.total_runs);
			EXPECT_EQ(6, add.total_pairs);
			break;
		}
		EXPECT_EQ(-1, ret);
		EXPECT_EQ(ENOMEM, errno);
		/* No run is to blame, and none was taken. */
		EXPECT_EQ(3, add.bad_run);
		EXPECT_EQ(0, add.total_runs);
		EXPECT_EQ(0, add.total_pairs);
		EXPECT_EQ(VMBEAM_STATE_EMPTY, get_status(self->fd).state);
	}
	EXPECT_LT(5, nth);
	EXPECT_GT(ENOUGH, nth);
	/* And what failed left nothing that would be in the way. */
	EXPECT_EQ(0, do_commit(self->fd, 0, 0, NULL, NULL));
	EXPECT_EQ(6, get_status(self->fd).swapped);
}

/* What commits, rollbacks and the end of a file need was allocated before. */
TEST_F(fault, no_alloc_once_loaded)
{
	ASSERT_EQ(0, load_backwards(self->fd, self->a, self->b, MANY));
	fail_alloc(1);
	EXPECT_EQ(0, do_check(self->fd, 0, 0, NULL, NULL));
	EXPECT_EQ(0, do_commit(self->fd, 0, 0, NULL, NULL));
	EXPECT_EQ(0, do_rollback(self->fd, MANY, NULL));
	EXPECT_FALSE(happened(VMBEAM_DEBUG_FAIL_ALLOC));
	REOPEN();
	ASSERT_EQ(0, load_backwards(self->fd, self->a, self->b, MANY));
	ASSERT_EQ(0, do_commit(self->fd, 0, MANY / 2, NULL, NULL));
	fail_alloc(1);
	close(self->fd);
	EXPECT_FALSE(happened(VMBEAM_DEBUG_FAIL_ALLOC));
	EXPECT_HOME(0, MANY);
	self->fd = open(DEVICE, O_RDWR | O_CLOEXEC);
}

/* ---- Every hypercall, every error ---- */

static const struct {
	int returns;
	int expected;
} errors[] = {
	{ -ESRCH, ESRCH },
	{ -EADDRNOTAVAIL, ESRCH },	/* another domain has the number */
	{ -EPERM, EPERM },
	{ -EACCES, EPERM },		/* a security module */
	{ -ENXIO, ENXIO },
	{ -EBUSY, EBUSY },		/* a device passed through */
	{ -EADDRINUSE, EBUSY },		/* altp2m */
	{ -EMLINK, EBUSY },		/* memory sharing */
	{ -EAGAIN, EBUSY },		/* memory paging */
	{ -ENOMEM, ENOMEM },
	{ -EOPNOTSUPP, EOPNOTSUPP },
	{ -ENOSYS, EOPNOTSUPP },	/* no such operation */
	{ -ENOEXEC, EOPNOTSUPP },	/* another version of it */
	{ -EFAULT, EIO },
	{ -EINVAL, EIO },
	{ -EINTR, EIO },
	{ -9999, EIO },
	{ 1, EIO },
};

TEST_F(fault, call_errors_before_the_first_pair)
{
	struct vmbeam_status status;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(errors); i++) {
		fail_call(1, 0, errors[i].returns);
		if (errors[i].returns < 0) {
			EXPECT_FAIL(errors[i].expected, do_bind(self->fd, self->a, self->b));
			EXPECT_TRUE(happened(VMBEAM_DEBUG_FAIL_CALL));
		}
		no_faults();
	}
	/* It says yes, and not which domains these are. */
	fail_call(1, 0, 0);
	EXPECT_FAIL(EIO, do_bind(self->fd, self->a, self->b));
	EXPECT_TRUE(happened(VMBEAM_DEBUG_FAIL_CALL));
	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 0, 0, 8));
	for (i = 0; i < ARRAY_SIZE(errors); i++) {
		fail_call(1, 0, errors[i].returns);
		EXPECT_FAIL(errors[i].expected, do_check(self->fd, 0, 0, NULL, NULL));
		fail_call(1, 0, errors[i].returns);
		EXPECT_FAIL(errors[i].expected, do_commit(self->fd, 0, 0, NULL, NULL));
		EXPECT_TRUE(happened(VMBEAM_DEBUG_FAIL_CALL));
		EXPECT_EQ(0, get_status(self->fd).cursor);
	}
	EXPECT_HOME(0, 8);
	ASSERT_EQ(0, do_commit(self->fd, 0, 4, NULL, NULL));
	for (i = 0; i < ARRAY_SIZE(errors); i++) {
		/* The check before a swap back, and the swap itself. */
		fail_call(1, 0, errors[i].returns);
		EXPECT_FAIL(errors[i].expected, do_rollback(self->fd, 4, NULL));
		fail_call(2, 0, errors[i].returns);
		EXPECT_FAIL(errors[i].expected, do_rollback(self->fd, 4, NULL));
		EXPECT_TRUE(happened(VMBEAM_DEBUG_FAIL_CALL));
		status = get_status(self->fd);
		EXPECT_EQ(4, status.cursor);
		EXPECT_EQ(4, status.swapped);
	}
	EXPECT_AWAY(0, 4);
	ASSERT_EQ(0, do_rollback(self->fd, 4, NULL));
	EXPECT_HOME(0, 8);
}

/* A relocation that could not be rolled back is not begun. */
TEST_F(fault, no_way_back)
{
	static const __u32 modes[] = { VMBEAM_BIND_TO_B, VMBEAM_BIND_TO_A };
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(modes); i++) {
		/* The domain that would give on the way back has devices. */
		fail_call(2, 0, -ENOTEMPTY);
		EXPECT_FAIL(EBUSY, do_bind_as(self->fd, self->a, self->b, modes[i]));
		EXPECT_TRUE(happened(VMBEAM_DEBUG_FAIL_CALL));
		EXPECT_EQ(VMBEAM_STATE_UNBOUND, get_status(self->fd).state);
	}
	EXPECT_EQ(0, do_bind_as(self->fd, self->a, self->b, VMBEAM_BIND_TO_B));
}

/* After an answer that makes no sense nothing moves any more. */
static bool is_broken(int fd, __u64 cursor)
{
	struct vmbeam_status before = get_status(fd), after;
	int i;

	for (i = 0; i < 4; i++) {
		int ret = i == 0 ? do_commit(fd, cursor, 0, NULL, NULL) :
			  i == 1 ? do_rollback(fd, cursor, NULL) :
			  i == 2 ? do_check(fd, 0, 0, NULL, NULL) :
				   add_one(fd, MANY + 1, MANY + 1, 1);

		if (ret != -1 || errno != EIO)
			return false;
	}
	after = get_status(fd);
	return before.cursor == cursor && !memcmp(&before, &after, sizeof(after));
}

#define LIE "an answer of the hypervisor makes no sense"

#define FORGET_BROKEN() do {					\
	struct vmbeam_record record;				\
								\
	REOPEN();						\
	ASSERT_EQ(1, count_records(&record));			\
	EXPECT_EQ(-EIO, record.error);				\
	/* It is not mended by being adopted. */		\
	ASSERT_EQ(0, do_adopt(self->fd, record.id));		\
	EXPECT_TRUE(is_broken(self->fd, record.cursor));	\
	REOPEN();						\
	ASSERT_EQ(1, count_records(&record));			\
	ASSERT_EQ(0, do_adopt(self->fd, record.id));		\
	ASSERT_EQ(0, do_abandon(self->fd, record.cursor, NULL));	\
} while (0)

/* A hypercall that claims to have succeeded and has not done it all. */
TEST_F(fault, call_that_lies)
{
	struct vmbeam_commit commit;
	int before = logged(LIE), told;

	ASSERT_EQ(0, load_backwards(self->fd, self->a, self->b, 600));
	/* A part done, and no error: the cursor says how much is known to be. */
	fail_call(1, 100, 0);
	EXPECT_EQ(0, do_commit(self->fd, 0, 0, NULL, &commit));
	EXPECT_EQ(100, commit.cursor);
	EXPECT_AWAY(500, 100);
	EXPECT_HOME(0, 500);
	EXPECT_TRUE(is_broken(self->fd, 100));
	FORGET_BROKEN();
	/* The log has it, and no more often than once for as long as the module is loaded. */
	told = logged(LIE);
	EXPECT_LE(1, told);
	EXPECT_GE(before + 1, told);
	REOPEN();
	ASSERT_EQ(0, load_backwards(self->fd, self->a, self->b, 8));
	fail_call(1, 4, 0);
	EXPECT_EQ(0, do_commit(self->fd, 0, 0, NULL, NULL));
	EXPECT_TRUE(is_broken(self->fd, 4));
	EXPECT_EQ(told, logged(LIE));
}

/* Nothing done, and no error. */
TEST_F(fault, call_that_does_nothing)
{
	int other;

	ASSERT_EQ(0, load_backwards(self->fd, self->a, self->b, 600));
	fail_call(1, 0, 0);
	EXPECT_FAIL(EIO, do_commit(self->fd, 0, 0, NULL, NULL));
	EXPECT_TRUE(is_broken(self->fd, 0));
	/* Some of its pairs may be swapped for all that is known. */
	other = open(DEVICE, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, other);
	EXPECT_FAIL(EBUSY, do_bind(other, self->a, self->b));
	close(other);
	FORGET_BROKEN();
}

/* More done than it was asked for: nobody knows what is swapped. */
TEST_F(fault, call_that_exaggerates)
{
	ASSERT_EQ(0, load_backwards(self->fd, self->a, self->b, 600));
	inject(VMBEAM_DEBUG_FAIL_CALL, 1, BATCH, 0, CLAIM_MORE);
	EXPECT_FAIL(EIO, do_commit(self->fd, 0, 0, NULL, NULL));
	EXPECT_TRUE(is_broken(self->fd, 0));
	FORGET_BROKEN();
}

/* As much as it was asked for, of which it has looked at a part only. */
TEST_F(fault, call_that_claims_all)
{
	struct vmbeam_commit commit;

	ASSERT_EQ(0, load_backwards(self->fd, self->a, self->b, 600));
	/* The second one: that of the first left its statuses where those of this one go. */
	inject(VMBEAM_DEBUG_FAIL_CALL, 2, 10, 0, CLAIM_ALL);
	EXPECT_EQ(0, do_commit(self->fd, 0, 0, NULL, &commit));
	EXPECT_EQ(BATCH + 10, commit.cursor);
	EXPECT_EQ(BATCH + 10, commit.swapped);
	EXPECT_TRUE(is_broken(self->fd, BATCH + 10));
	FORGET_BROKEN();
}

/* The same when its statuses cannot be written, either. */
TEST_F(fault, call_that_claims_all_unheard)
{
	const size_t elements = 4096, size = elements * sizeof(__s32);
	char *array = mmap(NULL, size + 4096, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct vmbeam_commit commit;

	ASSERT_NE(MAP_FAILED, array);
	ASSERT_EQ(0, mprotect(array + size, 4096, PROT_NONE));
	ASSERT_EQ(0, load_backwards(self->fd, self->a, self->b, 5000));
	inject(VMBEAM_DEBUG_FAIL_CALL, elements / BATCH + 1, 10, 0, CLAIM_ALL);
	EXPECT_EQ(0, do_commit(self->fd, 0, 0, (void *)array, &commit));
	EXPECT_EQ(elements + 10, commit.cursor);
	EXPECT_TRUE(is_broken(self->fd, elements + 10));
	FORGET_BROKEN();
	munmap(array, size + 4096);
}

/* The error comes at every hypercall of a commit in turn, after part of it. */
TEST_F_TIMEOUT(fault, call_errors_in_the_middle, 120)
{
	static __s32 status[MANY];
	struct vmbeam_commit commit;
	unsigned int nth, i;

	for (nth = 1; nth < ENOUGH; nth++) {
		unsigned int expected = (nth - 1) * BATCH + 100;

		ASSERT_EQ(0, load_backwards(self->fd, self->a, self->b, MANY));
		fail_call(nth, 100, -EBUSY);
		memset(status, 0xcc, sizeof(status));
		ASSERT_EQ(0, do_commit(self->fd, 0, 0, status, &commit));
		if (!happened(VMBEAM_DEBUG_FAIL_CALL)) {
			EXPECT_EQ(MANY, commit.cursor);
			break;
		}
		if (expected > MANY)
			expected = MANY;
		ASSERT_EQ(expected, commit.cursor);
		ASSERT_EQ(expected, commit.swapped);
		ASSERT_EQ(expected, get_status(self->fd).cursor);
		for (i = 0; i < MANY; i++)
			ASSERT_EQ(i < expected ? 0 : LEFT_ALONE, status[i]);
		EXPECT_AWAY(MANY - expected, expected);
		EXPECT_HOME(0, MANY - expected);
		/* Closed half way: back by itself. */
		REOPEN();
		EXPECT_HOME(0, MANY);
	}
	EXPECT_LT(5, nth);
	EXPECT_GT(ENOUGH, nth);
}

/*
 * Statuses are written batch by batch and not ahead: what a signal has to wait for, or a
 * commit to get over before it begins, does not grow with the caller's array.
 */
TEST_F(fault, large_array)
{
	const size_t pairs = 1 << 24, batch = 4096, page = 4096;
	const size_t size = pairs * sizeof(__s32);
	struct vmbeam_commit commit;
	unsigned char *resident = calloc(size / page, 1);
	size_t i, touched = 0;
	__s32 *status;

	ASSERT_NE(NULL, resident);
	status = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, status);
	ASSERT_EQ(0, madvise(status, size, MADV_NOHUGEPAGE));
	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	/* Most of them are beyond the domains and will be refused. */
	ASSERT_EQ(0, add_one(self->fd, 0, 0, pairs));
	fail_call(2, 0, -ENOMEM);
	EXPECT_EQ(0, do_commit(self->fd, 0, 0, status, &commit));
	EXPECT_TRUE(happened(VMBEAM_DEBUG_FAIL_CALL));
	EXPECT_EQ(batch, commit.cursor);
	EXPECT_EQ(MANY, commit.swapped);
	ASSERT_EQ(0, mincore(status, size, resident));
	for (i = 0; i < size / page; i++)
		touched += resident[i] & 1;
	EXPECT_EQ(batch * sizeof(__s32) / page, touched);
	munmap(status, size);
	free(resident);
}

/* The rollback of a closed file fails at every hypercall in turn. */
TEST_F_TIMEOUT(fault, call_errors_when_closed, 120)
{
	struct vmbeam_record record;
	unsigned int nth, records = 0;

	for (nth = 1; nth < ENOUGH; nth++) {
		ASSERT_EQ(0, load_backwards(self->fd, self->a, self->b, MANY));
		ASSERT_EQ(0, do_commit(self->fd, 0, MANY - 100, NULL, NULL));
		fail_call(nth, 10, -ENOMEM);
		REOPEN();
		if (!happened(VMBEAM_DEBUG_FAIL_CALL)) {
			EXPECT_EQ(0, count_records(NULL));
			EXPECT_HOME(0, MANY);
			break;
		}
		ASSERT_EQ(1, count_records(&record));
		ASSERT_EQ(-ENOMEM, record.error);
		ASSERT_EQ(record.cursor, record.swapped);
		EXPECT_AWAY(MANY - record.cursor, record.cursor);
		EXPECT_HOME(0, MANY - record.cursor);
		records++;
		/* What an operator would do. */
		ASSERT_EQ(0, do_adopt(self->fd, record.id));
		ASSERT_EQ(0, do_rollback(self->fd, record.cursor, NULL));
		EXPECT_HOME(0, MANY);
		REOPEN();
	}
	EXPECT_LT(10, records);
	EXPECT_GT(ENOUGH, nth);
}

struct back {
	pthread_t thread;
	int fd, ret;
	struct vmbeam_rollback rollback;
};

static void *go_back(void *arg)
{
	struct back *back = arg;

	back->ret = do_rollback(back->fd, get_status(back->fd).cursor, &back->rollback);
	return NULL;
}

/* Something takes hold of a frame when a rollback has found that nothing does. */
TEST_F(fault, frame_taken_during_a_rollback)
{
	struct back back = { .fd = self->fd };
	struct vmbeam_status status;
	void *held;

	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 0, 0, 64));
	ASSERT_EQ(0, do_commit(self->fd, 0, 0, NULL, NULL));
	/* The first one asks, the second one swaps. */
	hold_call(2);
	/* Counts them. */
	fail_call(ENOUGH, 0, 0);
	ASSERT_EQ(0, pthread_create(&back.thread, NULL, go_back, &back));
	wait_until_held();
	held = domain_hold(self->b, 40);
	EXPECT_NE(NULL, held);
	hold_call(0);
	pthread_join(back.thread, NULL);
	/* That is all: a hypervisor that says one thing and then another is not asked for ever. */
	EXPECT_EQ(ENOUGH - 2, inject(VMBEAM_DEBUG_FAIL_CALL, 0, 0, 0, 0));
	EXPECT_EQ(0, back.ret);
	EXPECT_EQ(41, back.rollback.cursor);
	EXPECT_EQ(63, back.rollback.restored);
	EXPECT_AWAY(40, 1);
	EXPECT_HOME(0, 40);
	EXPECT_HOME(41, 23);
	EXPECT_FAIL(EBUSY, do_rollback(self->fd, 41, NULL));
	domain_release(held);
	status = get_status(self->fd);
	EXPECT_EQ(VMBEAM_STATE_ROLLING_BACK, status.state);
	EXPECT_EQ(41, status.cursor);
	EXPECT_EQ(1, status.swapped);
	/* What is back below it is not touched again. */
	EXPECT_EQ(0, do_rollback(self->fd, 41, &back.rollback));
	EXPECT_EQ(0, back.rollback.cursor);
	EXPECT_EQ(1, back.rollback.restored);
	EXPECT_HOME(0, 64);
}

/* ---- Statuses that only the model can produce at will ---- */

TEST_F(fault, statuses)
{
	static const int all[] = {
		-ENOENT, -EBUSY, -EXDEV, -ENODATA, -EAGAIN, -EMLINK, -EACCES,
		-EROFS, -EPERM, -EOPNOTSUPP, -EEXIST, -ENOMEM, -ENOSPC,
	};
	__s32 status[2 * ARRAY_SIZE(all)];
	struct vmbeam_check check;
	struct vmbeam_commit commit;
	unsigned int i;

	if (!is_model(self->fd))
		SKIP(return, "a real hypervisor");
	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 0, 0, ARRAY_SIZE(status)));
	for (i = 0; i < ARRAY_SIZE(all); i++) {
		struct vmbeam_debug arg = {
			.op = VMBEAM_DEBUG_STATUS,
			.domid = i % 2 ? self->a : self->b,
			.first = 2 * i,
			.nr = 1,
			.value = all[i],
		};

		ASSERT_EQ(0, ioctl(debug_device, VMBEAM_IOCTL_DEBUG, &arg));
	}
	memset(status, 0xcc, sizeof(status));
	ASSERT_EQ(0, do_check(self->fd, 0, 0, status, &check));
	EXPECT_EQ(ARRAY_SIZE(all), check.refused);
	for (i = 0; i < ARRAY_SIZE(status); i++)
		EXPECT_EQ(i % 2 ? 0 : all[i / 2], status[i]);
	memset(status, 0xcc, sizeof(status));
	ASSERT_EQ(0, do_commit(self->fd, 0, 0, status, &commit));
	EXPECT_EQ(ARRAY_SIZE(all), commit.refused);
	EXPECT_EQ(ARRAY_SIZE(all), commit.swapped);
	for (i = 0; i < ARRAY_SIZE(status); i++)
		EXPECT_EQ(i % 2 ? 0 : all[i / 2], status[i]);

	/* Each of them as the error of a rollback that cannot get on. */
	for (i = 0; i < ARRAY_SIZE(all); i++) {
		struct vmbeam_debug arg = {
			.op = VMBEAM_DEBUG_STATUS,
			.domid = self->b,
			.first = ARRAY_SIZE(status) - 1,
			.nr = 1,
			.value = all[i],
		};

		ASSERT_EQ(0, ioctl(debug_device, VMBEAM_IOCTL_DEBUG, &arg));
		EXPECT_FAIL(-all[i], do_rollback(self->fd, ARRAY_SIZE(status), NULL));
	}
}

/* What a device model merely keeps mapped in stock it is asked for before it matters. */
TEST_F(fault, mappings_in_stock)
{
	struct vmbeam_check check;
	struct vmbeam_debug arg = {
		.op = VMBEAM_DEBUG_STATUS, .domid = self->b, .first = 3, .nr = 2, .value = EBUSY,
	};

	if (!is_model(self->fd))
		SKIP(return, "a real hypervisor");
	ASSERT_EQ(0, ioctl(debug_device, VMBEAM_IOCTL_DEBUG, &arg));
	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 0, 0, 8));
	EXPECT_EQ(0, do_check(self->fd, 0, 0, NULL, &check));
	EXPECT_EQ(0, check.refused);
	/* Not by every call: it would have to fetch them again each time. */
	ASSERT_EQ(0, ioctl(debug_device, VMBEAM_IOCTL_DEBUG, &arg));
	EXPECT_EQ(0, do_check(self->fd, 0, 0, NULL, &check));
	EXPECT_EQ(2, check.refused);
}

/* The caller's memory is taken away in the middle. */
struct unmapper {
	int fd;
	void *page;
};

static void *unmap_after_first_batch(void *arg)
{
	struct unmapper *unmapper = arg;

	while (!get_status(unmapper->fd).cursor)
		;
	munmap(unmapper->page, 4096 * 4);
	return NULL;
}

TEST_F(fault, efault_after_progress)
{
	struct unmapper unmapper = { .fd = self->fd };
	struct vmbeam_status state;
	pthread_t thread;

	ASSERT_EQ(0, load_backwards(self->fd, self->a, self->b, MANY));
	unmapper.page = mmap(NULL, 4096 * 4, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, unmapper.page);
	inject(VMBEAM_DEBUG_SLOW, 100, 0, 0, 0);
	ASSERT_EQ(0, pthread_create(&thread, NULL, unmap_after_first_batch, &unmapper));
	EXPECT_FAIL(EFAULT, do_commit(self->fd, 0, 0, unmapper.page, NULL));
	pthread_join(thread, NULL);
	inject(VMBEAM_DEBUG_SLOW, 0, 0, 0, 0);
	/* STATUS tells what happened, to the pair. */
	state = get_status(self->fd);
	EXPECT_LT(0, state.cursor);
	EXPECT_GT(MANY, state.cursor);
	EXPECT_EQ(state.cursor, state.swapped);
	EXPECT_AWAY(MANY - state.cursor, state.cursor);
	EXPECT_HOME(0, MANY - state.cursor);
}

/* ---- Watching and cancelling ---- */

struct worker {
	pthread_t thread;
	int fd, nr, ret, error;
	struct vmbeam_commit commit;
};

static void *work(void *arg)
{
	struct worker *worker = arg;

	errno = 0;
	if (worker->nr == _IOC_NR(VMBEAM_IOCTL_COMMIT))
		worker->ret = do_commit(worker->fd, 0, 0, NULL, &worker->commit);
	else if (worker->nr == _IOC_NR(VMBEAM_IOCTL_CHECK))
		worker->ret = do_check(worker->fd, 0, 0, NULL, NULL);
	else
		worker->ret = do_rollback(worker->fd, get_status(worker->fd).cursor, NULL);
	worker->error = errno;
	return NULL;
}

TEST_F(fault, watch_and_cancel)
{
	struct worker worker = { .fd = self->fd, .nr = _IOC_NR(VMBEAM_IOCTL_COMMIT) };
	struct vmbeam_status state;
	unsigned int looks = 0;

	ASSERT_EQ(0, load_backwards(self->fd, self->a, self->b, MANY));
	inject(VMBEAM_DEBUG_SLOW, 300, 0, 0, 0);
	ASSERT_EQ(0, pthread_create(&worker.thread, NULL, work, &worker));
	do {
		state = get_status(self->fd);
		looks++;
	} while (!state.cursor);
	/* It did not wait for the hypercall, let alone the commit. */
	EXPECT_LT(2, looks);
	EXPECT_EQ(VMBEAM_STATE_COMMITTING, state.state);
	EXPECT_EQ(_IOC_NR(VMBEAM_IOCTL_COMMIT), state.activity);
	EXPECT_EQ(BATCH, state.cursor);
	EXPECT_TRUE(fdinfo_has(self->fd, "activity:\tcommit"));
	EXPECT_EQ(0, do_cancel(self->fd));
	pthread_join(worker.thread, NULL);
	EXPECT_EQ(-1, worker.ret);
	EXPECT_EQ(ECANCELED, worker.error);
	/* The out fields of the cancelled call are valid. */
	state = get_status(self->fd);
	EXPECT_EQ(0, state.activity);
	EXPECT_EQ(state.cursor, worker.commit.cursor);
	EXPECT_EQ(state.swapped, worker.commit.swapped);
	EXPECT_EQ(2 * BATCH, state.cursor);
	EXPECT_FAIL(ENOENT, do_cancel(self->fd));

	/* The same for a dry run and for a rollback. */
	worker.nr = _IOC_NR(VMBEAM_IOCTL_CHECK);
	ASSERT_EQ(0, pthread_create(&worker.thread, NULL, work, &worker));
	while (get_status(self->fd).activity != (__u32)worker.nr)
		;
	EXPECT_TRUE(fdinfo_has(self->fd, "activity:\tcheck"));
	EXPECT_EQ(0, do_cancel(self->fd));
	pthread_join(worker.thread, NULL);
	EXPECT_EQ(ECANCELED, worker.error);
	worker.nr = _IOC_NR(VMBEAM_IOCTL_ROLLBACK);
	ASSERT_EQ(0, pthread_create(&worker.thread, NULL, work, &worker));
	while (get_status(self->fd).activity != (__u32)worker.nr)
		;
	EXPECT_TRUE(fdinfo_has(self->fd, "activity:\trollback"));
	EXPECT_EQ(0, do_cancel(self->fd));
	pthread_join(worker.thread, NULL);
	EXPECT_EQ(ECANCELED, worker.error);
	inject(VMBEAM_DEBUG_SLOW, 0, 0, 0, 0);
	state = get_status(self->fd);
	EXPECT_AWAY(MANY - state.cursor, state.cursor);
	ASSERT_EQ(0, do_rollback(self->fd, state.cursor, NULL));
	EXPECT_HOME(0, MANY);
}

TEST_F(fault, interrupted_while_waiting)
{
	struct worker worker = { .fd = self->fd, .nr = _IOC_NR(VMBEAM_IOCTL_COMMIT) };
	int wstatus;
	pid_t pid;

	ASSERT_EQ(0, load_backwards(self->fd, self->a, self->b, MANY));
	inject(VMBEAM_DEBUG_SLOW, 300, 0, 0, 0);
	ASSERT_EQ(0, pthread_create(&worker.thread, NULL, work, &worker));
	while (!get_status(self->fd).activity)
		;
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		do_rollback(self->fd, 0, NULL);
		_exit(0);
	}
	usleep(100000);
	/* It waits for its turn, and can be killed while it does. */
	kill(pid, SIGKILL);
	ASSERT_EQ(pid, waitpid(pid, &wstatus, 0));
	EXPECT_TRUE(WIFSIGNALED(wstatus));
	EXPECT_NE(0, get_status(self->fd).activity);
	inject(VMBEAM_DEBUG_SLOW, 0, 0, 0, 0);
	pthread_join(worker.thread, NULL);
	EXPECT_EQ(0, worker.ret);
	EXPECT_EQ(MANY, worker.commit.cursor);
	EXPECT_AWAY(0, MANY);
}

/* Each of the ioctls that take turns, while another one works on the session. */
static int call_nr(int fd, unsigned int nr)
{
	struct vmbeam_run run = { 0, 0, 1, 0 };

	switch (nr) {
	case _IOC_NR(VMBEAM_IOCTL_BIND):
		return do_bind(fd, 1, 2);
	case _IOC_NR(VMBEAM_IOCTL_ADD):
		return do_add(fd, &run, 1, NULL);
	case _IOC_NR(VMBEAM_IOCTL_CHECK):
		return do_check(fd, 0, 0, NULL, NULL);
	case _IOC_NR(VMBEAM_IOCTL_COMMIT):
		return do_commit(fd, 0, 0, NULL, NULL);
	case _IOC_NR(VMBEAM_IOCTL_ROLLBACK):
		return do_rollback(fd, 0, NULL);
	case _IOC_NR(VMBEAM_IOCTL_ABANDON):
		return do_abandon(fd, 0, NULL);
	default:
		return do_adopt(fd, 1);
	}
}

TEST_F(fault, signal_while_waiting)
{
	static const unsigned int waiting[] = {
		_IOC_NR(VMBEAM_IOCTL_BIND), _IOC_NR(VMBEAM_IOCTL_ADD),
		_IOC_NR(VMBEAM_IOCTL_CHECK), _IOC_NR(VMBEAM_IOCTL_COMMIT),
		_IOC_NR(VMBEAM_IOCTL_ROLLBACK), _IOC_NR(VMBEAM_IOCTL_ADOPT),
		_IOC_NR(VMBEAM_IOCTL_ABANDON),
	};
	struct worker worker = { .fd = self->fd, .nr = _IOC_NR(VMBEAM_IOCTL_COMMIT) };
	sigset_t alarm;
	unsigned int i;

	ASSERT_EQ(0, load_backwards(self->fd, self->a, self->b, MANY));
	inject(VMBEAM_DEBUG_SLOW, 500, 0, 0, 0);
	/* The signals are for this thread only. */
	sigemptyset(&alarm);
	sigaddset(&alarm, SIGALRM);
	ASSERT_EQ(0, pthread_sigmask(SIG_BLOCK, &alarm, NULL));
	ASSERT_EQ(0, pthread_create(&worker.thread, NULL, work, &worker));
	ASSERT_EQ(0, pthread_sigmask(SIG_UNBLOCK, &alarm, NULL));
	while (!get_status(self->fd).activity)
		;
	for (i = 0; i < ARRAY_SIZE(waiting); i++) {
		interrupt_every(20000);
		EXPECT_FAIL(EINTR, call_nr(self->fd, waiting[i]));
	}
	interrupt_every(0);
	/* It has not been disturbed, and they have done nothing. */
	EXPECT_EQ(worker.nr, get_status(self->fd).activity);
	inject(VMBEAM_DEBUG_SLOW, 0, 0, 0, 0);
	pthread_join(worker.thread, NULL);
	EXPECT_EQ(0, worker.ret);
	EXPECT_EQ(MANY, worker.commit.cursor);
}

/* ---- Killed at every batch ---- */

/* The file survives: its cursor is exact, whoever has it can roll back. */
TEST_F_TIMEOUT(fault, killed_at_every_batch_file_survives, 120)
{
	unsigned int nth;

	for (nth = 1; nth < ENOUGH; nth++) {
		struct vmbeam_status state;
		int wstatus;
		pid_t pid;

		ASSERT_EQ(0, load_backwards(self->fd, self->a, self->b, MANY));
		inject(VMBEAM_DEBUG_SIGNAL, nth, 0, SIGKILL, 0);
		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid) {
			do_commit(self->fd, 0, 0, NULL, NULL);
			_exit(0);
		}
		ASSERT_EQ(pid, waitpid(pid, &wstatus, 0));
		state = get_status(self->fd);
		if (!happened(VMBEAM_DEBUG_SIGNAL)) {
			EXPECT_TRUE(WIFEXITED(wstatus));
			EXPECT_EQ(MANY, state.cursor);
			break;
		}
		EXPECT_TRUE(WIFSIGNALED(wstatus));
		ASSERT_EQ(nth * BATCH < MANY ? nth * BATCH : MANY, state.cursor);
		ASSERT_EQ(state.cursor, state.swapped);
		EXPECT_AWAY(MANY - state.cursor, state.cursor);
		EXPECT_HOME(0, MANY - state.cursor);
		ASSERT_EQ(0, do_rollback(self->fd, state.cursor, NULL));
		EXPECT_HOME(0, MANY);
		REOPEN();
	}
	EXPECT_LT(5, nth);
	EXPECT_GT(ENOUGH, nth);
}

/* Nobody has the file any more: all or nothing. */
TEST_F_TIMEOUT(fault, killed_at_every_batch_file_goes, 120)
{
	unsigned int nth;

	close(self->fd);
	for (nth = 1; nth < ENOUGH; nth++) {
		int wstatus, fd;
		pid_t pid;

		inject(VMBEAM_DEBUG_SIGNAL, 0, 0, 0, 0);
		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid) {
			fd = open(DEVICE, O_RDWR | O_CLOEXEC);
			if (load_backwards(fd, self->a, self->b, MANY))
				_exit(1);
			inject(VMBEAM_DEBUG_SIGNAL, nth, 0, SIGKILL, 0);
			do_commit(fd, 0, 0, NULL, NULL);
			_exit(0);
		}
		ASSERT_EQ(pid, waitpid(pid, &wstatus, 0));
		EXPECT_EQ(0, count_records(NULL));
		if (!WIFSIGNALED(wstatus)) {
			EXPECT_TRUE(WIFEXITED(wstatus) && !WEXITSTATUS(wstatus));
			EXPECT_AWAY(0, MANY);
			break;
		}
		EXPECT_EQ(0, nth * BATCH < MANY ?
			  not_home(self->a, self->b, 0, MANY) :
			  not_away(self->a, self->b, 0, MANY));
		/* Home again for the next round, if this one was complete. */
		ASSERT_EQ(0, domain_fill(self->a, TAG_A, 0, MANY));
		ASSERT_EQ(0, domain_fill(self->b, TAG_B, 0, MANY));
	}
	EXPECT_LT(5, nth);
	EXPECT_GT(ENOUGH, nth);
	self->fd = open(DEVICE, O_RDWR | O_CLOEXEC);
}

/* ---- Closed by a thread of the kernel ---- */

/* Files that only each other can reach are looked for when a socket is closed. */
static void look_for_garbage(void)
{
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_DGRAM, 0, pair))
		return;
	close(pair[0]);
	close(pair[1]);
}

/* Put a file into a socket that is only reachable through itself, and let go of all. */
static int lose_in_a_cycle(int fd)
{
	char control[CMSG_SPACE(2 * sizeof(int))] = {};
	char byte = 0;
	struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1,
		.msg_control = control, .msg_controllen = sizeof(control),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
	int pair[2], fds[2];

	if (socketpair(AF_UNIX, SOCK_DGRAM, 0, pair))
		return -1;
	fds[0] = fd;
	fds[1] = pair[1];
	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(fds));
	memcpy(CMSG_DATA(cmsg), fds, sizeof(fds));
	if (sendmsg(pair[0], &msg, 0) != 1)
		return -1;
	close(fd);
	close(pair[0]);
	close(pair[1]);
	return 0;
}

/* Leave a file to a ring, and close that. */
static int lose_in_a_ring(int fd)
{
	char params[120] = {};
	int ring = syscall(__NR_io_uring_setup, 1, params);
	int ret;

	if (ring < 0)
		return -1;
	/* IORING_REGISTER_FILES */
	ret = syscall(__NR_io_uring_register, ring, 2, &fd, 1);
	close(fd);
	close(ring);
	return ret;
}

/* Until a rollback of somebody else has ended, which keeps others out. */
static int bind_when_free(__u32 a, __u32 b)
{
	int fd = open(DEVICE, O_RDWR | O_CLOEXEC);

	while (do_bind(fd, a, b)) {
		if (errno != EBUSY)
			return -1;
		usleep(10000);
	}
	return fd;
}

static int module_users(void)
{
	FILE *file = fopen("/sys/module/vmbeam/refcnt", "r");
	int users = -1;

	if (file) {
		if (fscanf(file, "%d", &users) != 1)
			users = -1;
		fclose(file);
	}
	return users;
}

/*
 * Let go of a file half way such that a thread of the kernel closes it, which closes files
 * for all of the machine, one after the other: it must not wait for the rollback. What says
 * so is an order: another file that is closed the same way is closed while the rollback lasts.
 */
static void lose(struct __test_metadata *_metadata, struct _test_data_fault *self,
		 int (*how)(int fd))
{
	struct pollfd end = { .events = POLLIN };
	int pipes[2], users, other;
	char byte;

	ASSERT_EQ(0, load_backwards(self->fd, self->a, self->b, MANY));
	ASSERT_EQ(0, do_commit(self->fd, 0, MANY - 1, NULL, NULL));
	ASSERT_EQ(0, pipe(pipes));
	/* Two hypercalls a batch: so slow that the order is no matter of luck. */
	inject(VMBEAM_DEBUG_SLOW, 2000, 0, 0, 0);
	/* Counts the hypercalls. */
	fail_call(ENOUGH, 0, 0);
	users = module_users();
	ASSERT_EQ(0, how(self->fd)) {
		TH_LOG("%s", strerror(errno));
	}
	/* One look may have come too early, or be made while the kernel looks already. */
	while (inject(VMBEAM_DEBUG_FAIL_CALL, ENOUGH, 0, 0, 0) == ENOUGH) {
		look_for_garbage();
		usleep(1000);
	}
	/* The rollback has begun. */
	ASSERT_EQ(0, how(pipes[1]));
	end.fd = pipes[0];
	do
		look_for_garbage();
	while (poll(&end, 1, 10) == 0);
	EXPECT_EQ(0, read(pipes[0], &byte, 1));
	other = open(DEVICE, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, other);
	EXPECT_FAIL(EBUSY, do_bind(other, self->a, self->b));
	close(other);
	/* The rollback needs the module as the file did. */
	EXPECT_EQ(users, module_users());
	no_faults();
	self->fd = bind_when_free(self->a, self->b);
	ASSERT_LE(0, self->fd);
	EXPECT_HOME(0, MANY);
	EXPECT_EQ(0, count_records(NULL));
	close(pipes[0]);
}

TEST_F_TIMEOUT(fault, lost_in_a_ring, 120)
{
	lose(_metadata, self, lose_in_a_ring);
}

TEST_F_TIMEOUT(fault, lost_in_a_socket, 120)
{
	lose(_metadata, self, lose_in_a_cycle);
}

TEST_HARNESS_MAIN
