// SPDX-License-Identifier: GPL-2.0-only
/*
 * Selftest of /dev/vmbeam: its ioctls one by one. Runs as root in dom0, or with
 * a debug driver anywhere.
 *
 * The first fixture needs no hypervisor. The second one needs a Xen with the
 * swap hypercall or the debug driver's model of one, and is skipped otherwise.
 * Its domains have memory and nothing else: A's frames are filled with one
 * pattern and B's with another, so where every frame went can be told from its
 * contents.
 */

#include "vmbeam_test.h"

static const struct {
	unsigned int cmd;
	unsigned int size;
	/* In version 1. */
	unsigned int first;
	unsigned int flags;
} ioctls[] = {
	{ VMBEAM_IOCTL_INFO, sizeof(struct vmbeam_info), 40 },
	{ VMBEAM_IOCTL_BIND, sizeof(struct vmbeam_bind), 32,
	  VMBEAM_BIND_KEEP | VMBEAM_BIND_TO_B | VMBEAM_BIND_TO_A },
	{ VMBEAM_IOCTL_ADD, sizeof(struct vmbeam_add), 40 },
	{ VMBEAM_IOCTL_CHECK, sizeof(struct vmbeam_check), 64 },
	{ VMBEAM_IOCTL_COMMIT, sizeof(struct vmbeam_commit), 64 },
	{ VMBEAM_IOCTL_STATUS, sizeof(struct vmbeam_status), 80 },
	{ VMBEAM_IOCTL_ROLLBACK, sizeof(struct vmbeam_rollback), 32 },
	{ VMBEAM_IOCTL_CANCEL, sizeof(struct vmbeam_cancel), 8 },
	{ VMBEAM_IOCTL_RECORD, sizeof(struct vmbeam_record), 120 },
	{ VMBEAM_IOCTL_ADOPT, sizeof(struct vmbeam_adopt), 16 },
	{ VMBEAM_IOCTL_ABANDON, sizeof(struct vmbeam_abandon), 24 },
};

#define NR_IOCTLS ARRAY_SIZE(ioctls)

/* ---- No hypervisor needed ---- */

FIXTURE(device) {
	int fd;
};

FIXTURE_SETUP(device)
{
	self->fd = open(DEVICE, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->fd) {
		TH_LOG("%s: %s; is vmbeam.ko loaded?", DEVICE, strerror(errno));
	}
}

FIXTURE_TEARDOWN(device)
{
	close(self->fd);
}

TEST_F(device, info)
{
	struct vmbeam_info arg;

	poison(&arg, sizeof(arg));
	ASSERT_EQ(0, ioctl(self->fd, VMBEAM_IOCTL_INFO, &arg));
	/* Whoever has the one has the others. */
	EXPECT_EQ(has_swap(self->fd) ? VMBEAM_FEATURE_SWAP | VMBEAM_FEATURE_KEEP |
				       VMBEAM_FEATURE_RELOCATE : 0, arg.features);
	EXPECT_EQ(65536, arg.max_add_runs);
	EXPECT_EQ(4096, arg.batch_pairs);
	EXPECT_EQ(1 << 20, arg.max_runs);
	EXPECT_EQ(1 << 28, arg.max_pairs);
	EXPECT_EQ(sizeof(arg), arg.size);
}

TEST_F(device, size_too_small)
{
	char buf[128];
	struct head *head = (void *)buf;
	unsigned int i;

	for (i = 0; i < NR_IOCTLS; i++) {
		memset(buf, 0, sizeof(buf));
		EXPECT_FAIL(EINVAL, ioctl(self->fd, ioctls[i].cmd, buf));
		head->size = ioctls[i].first - 1;
		EXPECT_FAIL(EINVAL, ioctl(self->fd, ioctls[i].cmd, buf));
	}
}

TEST_F(device, size_too_large)
{
	static char buf[8192];
	struct head *head = (void *)buf;
	unsigned int i;

	for (i = 0; i < NR_IOCTLS; i++) {
		/* The last byte of a tail that the kernel does not know. */
		memset(buf, 0, sizeof(buf));
		head->size = ioctls[i].size + 200;
		buf[head->size - 1] = 1;
		EXPECT_FAIL(E2BIG, ioctl(self->fd, ioctls[i].cmd, buf));
		/* The first. */
		memset(buf, 0, sizeof(buf));
		head->size = ioctls[i].size + 1;
		buf[ioctls[i].size] = 1;
		EXPECT_FAIL(E2BIG, ioctl(self->fd, ioctls[i].cmd, buf));
		/* Absurd. */
		memset(buf, 0, sizeof(buf));
		head->size = 4097;
		EXPECT_FAIL(E2BIG, ioctl(self->fd, ioctls[i].cmd, buf));
		head->size = UINT32_MAX;
		EXPECT_FAIL(E2BIG, ioctl(self->fd, ioctls[i].cmd, buf));
	}
}

TEST_F(device, zero_tail_is_accepted)
{
	struct {
		struct vmbeam_info info;
		char tail[100];
	} arg;
	static char largest[4096];
	struct head *head = (void *)largest;

	memset(&arg, 0, sizeof(arg));
	arg.info.size = sizeof(arg);
	EXPECT_EQ(0, ioctl(self->fd, VMBEAM_IOCTL_INFO, &arg));
	EXPECT_EQ(65536, arg.info.max_add_runs);
	/* As long as there can be one. */
	memset(largest, 0, sizeof(largest));
	head->size = sizeof(largest);
	EXPECT_EQ(0, ioctl(self->fd, VMBEAM_IOCTL_INFO, largest));
	EXPECT_EQ(0, ioctl(self->fd, VMBEAM_IOCTL_STATUS, largest));
}

/* The whole number counts: what was there before version 1 is not half understood. */
TEST_F(device, numbers_of_other_interfaces)
{
	char buf[256];
	unsigned int i;

	for (i = 0; i < NR_IOCTLS; i++) {
		/* _IOWR() of this structure, without a number. */
		unsigned int iowr = _IOC(_IOC_READ | _IOC_WRITE, VMBEAM_IOC_TYPE, 0,
					 ioctls[i].size);
		struct head *head = (void *)buf;

		memset(buf, 0, sizeof(buf));
		head->size = ioctls[i].size;
		EXPECT_FAIL(ENOTTY, ioctl(self->fd, iowr | i, buf));
		EXPECT_FAIL(ENOTTY, ioctl(self->fd, iowr | (VMBEAM_CMD_BASE + i), buf));
		EXPECT_FAIL(ENOTTY, ioctl(self->fd, _IO(VMBEAM_IOC_TYPE, i), buf));
	}
}

/* A descriptor that can only look. */
TEST_F(device, read_only)
{
	int fd = open(DEVICE, O_RDONLY | O_CLOEXEC);
	struct vmbeam_record record;
	unsigned int i;

	ASSERT_LE(0, fd);
	EXPECT_EQ(features(self->fd), features(fd));
	EXPECT_EQ(VMBEAM_STATE_UNBOUND, get_status(fd).state);
	EXPECT_FAIL(ENOENT, do_record(fd, UINT64_MAX, &record));
	for (i = 0; i < NR_IOCTLS; i++) {
		char buf[256];

		if (ioctls[i].cmd == VMBEAM_IOCTL_INFO || ioctls[i].cmd == VMBEAM_IOCTL_STATUS ||
		    ioctls[i].cmd == VMBEAM_IOCTL_RECORD)
			continue;
		poison(buf, ioctls[i].size);
		EXPECT_FAIL(EBADF, ioctl(fd, ioctls[i].cmd, buf));
	}
	close(fd);
}

TEST_F(device, unknown_flags)
{
	char buf[128];
	struct head *head = (void *)buf;
	unsigned int i;
	__u32 flag;

	for (i = 0; i < NR_IOCTLS; i++) {
		memset(buf, 0, sizeof(buf));
		head->size = ioctls[i].size;
		for (flag = 1; flag; flag <<= 1) {
			if (flag & ioctls[i].flags)
				continue;
			head->flags = flag;
			EXPECT_FAIL(EOPNOTSUPP, ioctl(self->fd, ioctls[i].cmd, buf));
		}
		head->flags = ioctls[i].flags | 1u << 31;
		EXPECT_FAIL(EOPNOTSUPP, ioctl(self->fd, ioctls[i].cmd, buf));
	}
}

TEST_F(device, bad_argument_pointers)
{
	char *page = page_before_hole();
	unsigned int i;

	ASSERT_NE(NULL, page);
	for (i = 0; i < NR_IOCTLS; i++) {
		EXPECT_FAIL(EFAULT, ioctl(self->fd, ioctls[i].cmd, NULL));
		EXPECT_FAIL(EFAULT, ioctl(self->fd, ioctls[i].cmd, page + 4096));
		/* An address of the kernel. */
		EXPECT_FAIL(EFAULT, ioctl(self->fd, ioctls[i].cmd, -4096UL));
		/* The size can be read and the rest cannot. */
		memcpy(page + 4092, &ioctls[i].size, 4);
		EXPECT_FAIL(EFAULT, ioctl(self->fd, ioctls[i].cmd, page + 4092));
	}
}

TEST_F(device, out_fields_that_cannot_be_written)
{
	struct vmbeam_info *info = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
					MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ASSERT_NE(MAP_FAILED, info);
	info->size = sizeof(*info);
	ASSERT_EQ(0, mprotect(info, 4096, PROT_READ));
	EXPECT_FAIL(EFAULT, ioctl(self->fd, VMBEAM_IOCTL_INFO, info));
}

TEST_F(device, misaligned_argument_is_fine)
{
	char buf[sizeof(struct vmbeam_info) + 1];
	struct vmbeam_info arg;

	poison(&arg, sizeof(arg));
	memcpy(buf + 1, &arg, sizeof(arg));
	ASSERT_EQ(0, ioctl(self->fd, VMBEAM_IOCTL_INFO, buf + 1));
	memcpy(&arg, buf + 1, sizeof(arg));
	EXPECT_EQ(65536, arg.max_add_runs);
}

TEST_F(device, unknown_ioctls)
{
	char buf[4096];
	unsigned int nr;

	memset(buf, 0, sizeof(buf));
	for (nr = 0; nr < 256; nr++) {
		if (nr >= VMBEAM_CMD_BASE && nr < VMBEAM_CMD_BASE + NR_IOCTLS)
			continue;
		EXPECT_FAIL(ENOTTY, ioctl(self->fd, _IO(VMBEAM_IOC_TYPE, nr), buf));
	}
	EXPECT_FAIL(ENOTTY, ioctl(self->fd, _IO(VMBEAM_IOC_TYPE + 2, 0), buf));
	EXPECT_FAIL(ENOTTY, ioctl(self->fd, 0, buf));
}

TEST_F(device, bind_bad_domids)
{
	EXPECT_FAIL(EINVAL, do_bind(self->fd, 1, 1));
	EXPECT_FAIL(EINVAL, do_bind(self->fd, 1, 0x7ff0));
	EXPECT_FAIL(EINVAL, do_bind(self->fd, 0x7ff0, 1));
	EXPECT_FAIL(EINVAL, do_bind(self->fd, 1, 0x10002));
	EXPECT_FAIL(EINVAL, do_bind(self->fd, UINT32_MAX, 1));
}

TEST_F(device, unbound)
{
	struct vmbeam_run run = { 0, 0, 1, 0 };
	struct vmbeam_status status = get_status(self->fd);

	EXPECT_EQ(VMBEAM_STATE_UNBOUND, status.state);
	EXPECT_EQ(0, status.activity);
	EXPECT_EQ(0, status.runs);
	EXPECT_EQ(0, status.pairs);
	EXPECT_EQ(0, status.cursor);
	EXPECT_EQ(0, status.swapped);
	EXPECT_EQ(0, status.refused);
	EXPECT_TRUE(fdinfo_has(self->fd, "hypercalls:\t0"));
	EXPECT_FAIL(EBADFD, do_add(self->fd, &run, 1, NULL));
	EXPECT_FAIL(EBADFD, do_check(self->fd, 0, 0, NULL, NULL));
	EXPECT_FAIL(EBADFD, do_commit(self->fd, 0, 0, NULL, NULL));
	EXPECT_FAIL(EBADFD, do_rollback(self->fd, 0, NULL));
	EXPECT_FAIL(EBADFD, do_abandon(self->fd, 0, NULL));
}

TEST_F(device, hypervisor_without_the_hypercall)
{
	if (has_swap(self->fd))
		SKIP(return, "this hypervisor has it");
	EXPECT_FAIL(EOPNOTSUPP, do_bind(self->fd, 1, 2));
	EXPECT_EQ(VMBEAM_STATE_UNBOUND, get_status(self->fd).state);
}

/* rmmod(8) reports this as "in use"; the system call says EWOULDBLOCK. */
TEST_F(device, module_in_use)
{
	EXPECT_EQ(-1, syscall(SYS_delete_module, "vmbeam", O_NONBLOCK));
	if (errno == ENOENT)
		SKIP(return, "not a module");
	EXPECT_TRUE(errno == EBUSY || errno == EWOULDBLOCK) {
		TH_LOG("delete_module: %s", strerror(errno));
	}
	EXPECT_TRUE(get_status(self->fd).state == VMBEAM_STATE_UNBOUND);
}

/* ---- Two domains ---- */

FIXTURE(pair) {
	int fd;
	__u32 a, b;
};

FIXTURE_SETUP(pair)
{
	self->a = NO_DOMAIN;
	self->b = NO_DOMAIN;
	self->fd = open(DEVICE, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->fd);
	if (!has_swap(self->fd))
		SKIP(return, "this hypervisor has no swap of frames");
	ASSERT_EQ(0, domains_open(is_model(self->fd))) {
		TH_LOG("xenctrl: %s", strerror(errno));
	}
	self->a = domain_create(DOMAIN_HAP, FRAMES);
	self->b = domain_create(DOMAIN_HAP, FRAMES);
	ASSERT_NE(NO_DOMAIN, self->a) {
		TH_LOG("no domain: %s", strerror(errno));
	}
	ASSERT_NE(NO_DOMAIN, self->b);
	ASSERT_EQ(0, domain_fill(self->a, TAG_A, 0, FRAMES));
	ASSERT_EQ(0, domain_fill(self->b, TAG_B, 0, FRAMES));
}

FIXTURE_TEARDOWN(pair)
{
	close(self->fd);
	forget_records();
	domain_destroy(self->a);
	domain_destroy(self->b);
	domains_close();
}

TEST_F(pair, bind_no_such_domain)
{
	EXPECT_FAIL(ESRCH, do_bind(self->fd, self->a, 0x7000));
	EXPECT_FAIL(ESRCH, do_bind(self->fd, 0x7000, self->b));
	/* A failed attempt binds nothing. */
	EXPECT_EQ(VMBEAM_STATE_UNBOUND, get_status(self->fd).state);
	EXPECT_EQ(0, do_bind(self->fd, self->a, self->b));
}

/* Ids are those of the domains for ever, and come back. */
TEST_F(pair, bind_by_id)
{
	__u64 id_a = 0, id_b = 0, x, y;
	int fd = open(DEVICE, O_RDWR | O_CLOEXEC);

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, do_bind_ids(self->fd, self->a, self->b, &id_a, &id_b));
	EXPECT_NE(0, id_a);
	EXPECT_NE(0, id_b);
	EXPECT_NE(id_a, id_b);
	x = id_b;
	y = id_a;
	EXPECT_FAIL(ESRCH, do_bind_ids(fd, self->a, self->b, &x, &y));
	EXPECT_EQ(id_b, x);
	x = id_a;
	y = id_b + 1;
	EXPECT_FAIL(ESRCH, do_bind_ids(fd, self->a, self->b, &x, &y));
	x = 0;
	y = id_a;
	EXPECT_EQ(0, do_bind_ids(fd, self->b, self->a, &x, &y));
	EXPECT_EQ(id_b, x);
	EXPECT_EQ(id_a, y);
	close(fd);
}

/* Another domain has the number now: it has nothing to do with the session. */
TEST_F(pair, domid_used_again)
{
	struct vmbeam_record record;
	__u64 id_a = 0, id_b = 0;
	__u32 again;

	ASSERT_EQ(0, do_bind_ids(self->fd, self->a, self->b, &id_a, &id_b));
	ASSERT_EQ(0, add_one(self->fd, 0, 0, 8));
	ASSERT_EQ(0, do_commit(self->fd, 0, 4, NULL, NULL));
	domain_destroy(self->b);
	again = domain_create_as(self->b, FRAMES);
	ASSERT_EQ(self->b, again) {
		TH_LOG("no domain with the same number: %s", strerror(errno));
	}
	ASSERT_EQ(0, domain_fill(self->b, TAG_B, 0, FRAMES));
	EXPECT_FAIL(ESRCH, do_check(self->fd, 0, 0, NULL, NULL));
	EXPECT_FAIL(ESRCH, do_commit(self->fd, 4, 0, NULL, NULL));
	EXPECT_FAIL(ESRCH, do_rollback(self->fd, 4, NULL));
	close(self->fd);
	EXPECT_EQ(0, domain_check(self->b, TAG_B, 0, FRAMES, 0));

	self->fd = open(DEVICE, O_RDWR | O_CLOEXEC);
	ASSERT_EQ(1, count_records(&record));
	EXPECT_EQ(-ESRCH, record.error);
	EXPECT_EQ(id_a, record.id_a);
	EXPECT_EQ(id_b, record.id_b);
	ASSERT_EQ(0, do_adopt(self->fd, record.id));
	EXPECT_FAIL(ESRCH, do_rollback(self->fd, 4, NULL));
	EXPECT_EQ(0, do_abandon(self->fd, 4, NULL));
	REOPEN();
	/* By its own id it can be used like any. */
	EXPECT_FAIL(ESRCH, do_bind_ids(self->fd, self->a, self->b, &id_a, &id_b));
	id_b = 0;
	EXPECT_EQ(0, do_bind_ids(self->fd, self->a, self->b, &id_a, &id_b));
	EXPECT_NE(record.id_b, id_b);
	EXPECT_EQ(0, domain_check(self->b, TAG_B, 0, FRAMES, 0));
}

TEST_F(pair, bind_dying_domain)
{
	__u32 zombie = domain_create(DOMAIN_HAP, 4);
	void *page;

	ASSERT_NE(NO_DOMAIN, zombie);
	/* As long as we hold a frame it cannot go away. */
	page = domain_hold(zombie, 0);
	ASSERT_NE(NULL, page);
	domain_destroy(zombie);
	EXPECT_TRUE(domain_dying(zombie));
	EXPECT_FAIL(ESRCH, do_bind(self->fd, self->a, zombie));
	domain_release(page);
}

TEST_F(pair, bind_control_domain)
{
	__u64 id_a = 0, id_b = 0, none = 0;

	EXPECT_FAIL(EPERM, do_bind(self->fd, 0, self->b));
	EXPECT_FAIL(EPERM, do_bind(self->fd, self->a, 0));
	/* So it is asked whether there is one domain, and which. */
	EXPECT_FAIL(ESRCH, do_bind(self->fd, 0x7000, 0));
	ASSERT_EQ(0, do_bind_ids(self->fd, self->a, self->b, &id_a, &id_b));
	REOPEN();
	EXPECT_FAIL(EPERM, do_bind_ids(self->fd, self->a, 0, &id_a, &none));
	EXPECT_FAIL(ESRCH, do_bind_ids(self->fd, self->a, 0, &id_b, &none));
}

TEST_F(pair, bind_pv_domain)
{
	__u32 pv = domain_create(DOMAIN_PV, 0);

	if (pv == NO_DOMAIN)
		SKIP(return, "no PV domains here");
	EXPECT_FAIL(ENXIO, do_bind(self->fd, self->a, pv));
	EXPECT_FAIL(ENXIO, do_bind(self->fd, pv, self->b));
	domain_destroy(pv);
}

TEST_F(pair, bind_log_dirty)
{
	if (domain_log_dirty(self->b))
		SKIP(return, "log-dirty mode: %s", strerror(errno));
	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 0, 0, 8));
	ASSERT_EQ(0, do_commit(self->fd, 0, 0, NULL, NULL));
	EXPECT_EQ(8, get_status(self->fd).swapped);
}

TEST_F(pair, bind_twice)
{
	struct vmbeam_status status;

	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	EXPECT_FAIL(EBADFD, do_bind(self->fd, self->a, self->b));
	EXPECT_FAIL(EBADFD, do_bind(self->fd, self->b, self->a));
	status = get_status(self->fd);
	EXPECT_EQ(VMBEAM_STATE_EMPTY, status.state);
	EXPECT_EQ(self->a, status.domid_a);
	EXPECT_EQ(self->b, status.domid_b);
}

TEST_F(pair, empty)
{
	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	EXPECT_FAIL(EBADFD, do_check(self->fd, 0, 0, NULL, NULL));
	EXPECT_FAIL(EBADFD, do_commit(self->fd, 0, 0, NULL, NULL));
	EXPECT_FAIL(EBADFD, do_rollback(self->fd, 0, NULL));
}

TEST_F(pair, add_merges)
{
	struct vmbeam_run runs[] = {
		{ 0, 8, 4, 0 }, { 4, 12, 4, 0 },	/* follows on in both */
		{ 8, 20, 2, 0 },			/* in one only */
	};
	struct vmbeam_add add;
	struct vmbeam_status status;

	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, do_add(self->fd, runs, 3, &add));
	EXPECT_EQ(3, add.bad_run);
	EXPECT_EQ(2, add.total_runs);
	EXPECT_EQ(10, add.total_pairs);
	/* Across calls as well. */
	EXPECT_EQ(0, add_one(self->fd, 10, 22, 1));
	status = get_status(self->fd);
	EXPECT_EQ(VMBEAM_STATE_LOADED, status.state);
	EXPECT_EQ(2, status.runs);
	EXPECT_EQ(11, status.pairs);
	/* In the other one only. */
	EXPECT_EQ(0, add_one(self->fd, 30, 23, 1));
	EXPECT_EQ(3, get_status(self->fd).runs);
}

TEST_F(pair, add_bad_calls)
{
	char *page = page_before_hole();
	struct vmbeam_run *runs;
	struct vmbeam_add add;

	ASSERT_NE(NULL, page);
	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	runs = (void *)(page + 4096 - sizeof(*runs));
	*runs = (struct vmbeam_run){ 0, 0, 1, 0 };
	EXPECT_FAIL(EINVAL, do_add(self->fd, runs, 0, &add));
	EXPECT_EQ(0, add.bad_run);
	EXPECT_FAIL(E2BIG, do_add(self->fd, runs, 65537, &add));
	EXPECT_EQ(65537, add.bad_run);
	EXPECT_FAIL(E2BIG, do_add(self->fd, runs, UINT32_MAX, NULL));
	EXPECT_FAIL(EFAULT, do_add(self->fd, NULL, 1, NULL));
	EXPECT_FAIL(EFAULT, do_add(self->fd, runs, 2, NULL));
	EXPECT_EQ(VMBEAM_STATE_EMPTY, get_status(self->fd).state);
	EXPECT_EQ(0, do_add(self->fd, runs, 1, &add));
	EXPECT_EQ(1, add.total_pairs);
}

#define LAST_GFN ((1ULL << 52) - 1)

TEST_F(pair, add_bad_runs)
{
	static const struct {
		struct vmbeam_run run;
		int error;
	} bad[] = {
		{ { 30, 30, 0, 0 }, EINVAL },			/* no pairs */
		{ { 30, 30, 1, 1 }, EINVAL },			/* reserved field */
		{ { 30, 30, 1, 1u << 31 }, EINVAL },
		{ { LAST_GFN, 30, 2, 0 }, EOVERFLOW },
		{ { 30, LAST_GFN, 2, 0 }, EOVERFLOW },
		{ { UINT64_MAX, 30, 1, 0 }, EOVERFLOW },
		{ { 30, UINT64_MAX - 1, UINT32_MAX, 0 }, EOVERFLOW },
		{ { 3, 30, 1, 0 }, EEXIST },			/* A, earlier call */
		{ { 30, 13, 1, 0 }, EEXIST },			/* B, earlier call */
		{ { 20, 40, 1, 0 }, EEXIST },			/* A, this call */
		{ { 40, 20, 2, 0 }, EEXIST },			/* B, this call */
	};
	unsigned int i;

	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 0, 10, 4));
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		struct vmbeam_run runs[] = {
			{ 20, 21, 2, 0 }, bad[i].run, { 50, 50, 1, 0 },
		};
		struct vmbeam_add add;

		EXPECT_FAIL(bad[i].error, do_add(self->fd, runs, 3, &add));
		EXPECT_EQ(1, add.bad_run) {
			TH_LOG("bad run %u", i);
		}
		/* All or none. */
		EXPECT_EQ(1, add.total_runs);
		EXPECT_EQ(4, add.total_pairs);
	}
	EXPECT_EQ(4, get_status(self->fd).pairs);
	EXPECT_EQ(0, add_one(self->fd, 20, 21, 2));
	/* The last frame there can be. */
	EXPECT_EQ(0, add_one(self->fd, LAST_GFN, LAST_GFN, 1));
}

/* The driver keeps one bit a frame, 64 of them together. */
TEST_F(pair, add_overlapping)
{
	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 60, 60, 10));
	EXPECT_FAIL(EEXIST, add_one(self->fd, 66, 1000, 1));
	EXPECT_FAIL(EEXIST, add_one(self->fd, 1000, 66, 1));
	EXPECT_FAIL(EEXIST, add_one(self->fd, 69, 1000, 100));
	EXPECT_FAIL(EEXIST, add_one(self->fd, 1000, 0, 61));
	/* What was refused is not in the way. */
	EXPECT_EQ(0, add_one(self->fd, 1000, 1000, 100));
	EXPECT_EQ(0, add_one(self->fd, 70, 0, 60));
	EXPECT_EQ(0, add_one(self->fd, 0, 70, 60));
}

TEST_F(pair, add_too_many_pairs)
{
	struct vmbeam_add add;
	struct vmbeam_run run = { 0, 0, (1u << 28) + 1, 0 };

	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	EXPECT_FAIL(ENOSPC, do_add(self->fd, &run, 1, &add));
	EXPECT_EQ(0, add.total_pairs);
	run.nr = 1u << 28;
	EXPECT_EQ(0, do_add(self->fd, &run, 1, &add));
	EXPECT_EQ(1 << 28, add.total_pairs);
	run = (struct vmbeam_run){ 1u << 30, 1u << 30, 1, 0 };
	EXPECT_FAIL(ENOSPC, do_add(self->fd, &run, 1, NULL));
}

TEST_F_TIMEOUT(pair, add_too_many_runs, 120)
{
	const unsigned int chunk = 65536;
	struct vmbeam_run *runs = calloc(chunk, sizeof(*runs));
	struct vmbeam_add add;
	unsigned int i, call;

	ASSERT_NE(NULL, runs);
	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	for (call = 0; call < 16; call++) {
		/* Downwards, so that neither they nor their sides merge. */
		for (i = 0; i < chunk; i++) {
			runs[i].gfn_a = 2 * (chunk * (call + 1) - i);
			runs[i].gfn_b = 3 * (chunk * (call + 1) - i);
			runs[i].nr = 1;
		}
		/* Found among nearly a million. */
		if (call == 15)
			EXPECT_FAIL(EEXIST, add_one(self->fd, 2 * 12345, 1ULL << 40, 1));
		ASSERT_EQ(0, do_add(self->fd, runs, chunk, &add));
	}
	EXPECT_EQ(1 << 20, add.total_runs);
	EXPECT_FAIL(ENOSPC, add_one(self->fd, 1ULL << 40, 1ULL << 40, 1));
	free(runs);
}

TEST_F_TIMEOUT(pair, add_too_far_apart, 60)
{
	const unsigned int blocks = 1 << 14;
	struct vmbeam_run twice[] = {
		{ 32768ULL * blocks, 0, 1, 0 }, { 32768ULL * blocks, 1, 1, 0 },
	};
	struct vmbeam_run *runs = calloc(blocks, sizeof(*runs));
	struct vmbeam_add add;
	unsigned int i;

	ASSERT_NE(NULL, runs);
	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	/* A call that fails uses no block up. */
	EXPECT_FAIL(EEXIST, do_add(self->fd, twice, 2, NULL));
	for (i = 0; i < blocks; i++) {
		runs[i].gfn_a = 32768ULL * i;
		runs[i].gfn_b = i;
		runs[i].nr = 1;
	}
	ASSERT_EQ(0, do_add(self->fd, runs, blocks, &add));
	EXPECT_FAIL(ENOSPC, add_one(self->fd, 32768ULL * blocks, blocks, 1));
	/* Its last frame is in a block of its own, and none of them is kept. */
	EXPECT_FAIL(ENOSPC, add_one(self->fd, 32768ULL * blocks - 1, blocks, 2));
	EXPECT_EQ(0, add_one(self->fd, 32768ULL * blocks - 1, blocks, 1));
	free(runs);
}

TEST_F(pair, closed_before_commit)
{
	long pages_a = domain_pages(self->a), pages_b = domain_pages(self->b);

	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 0, 0, FRAMES));
	ASSERT_EQ(0, do_check(self->fd, 0, 0, NULL, NULL));
	close(self->fd);
	EXPECT_HOME(0, FRAMES);
	EXPECT_EQ(pages_a, domain_pages(self->a));
	EXPECT_EQ(pages_b, domain_pages(self->b));
	/* Nobody remembers: the same can be bound and loaded again. */
	self->fd = open(DEVICE, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->fd);
	EXPECT_EQ(VMBEAM_STATE_UNBOUND, get_status(self->fd).state);
	EXPECT_EQ(0, do_bind(self->fd, self->a, self->b));
	EXPECT_EQ(0, add_one(self->fd, 0, 0, FRAMES));
}

TEST_F(pair, check_statuses)
{
	__s32 status[6];
	struct vmbeam_check check;
	void *held;

	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	/* 4 good pairs, then one beyond the memory of B, and of A. */
	ASSERT_EQ(0, add_one(self->fd, 0, 0, 4));
	ASSERT_EQ(0, add_one(self->fd, 4, FRAMES + 10, 1));
	ASSERT_EQ(0, add_one(self->fd, FRAMES + 10, 4, 1));
	held = domain_hold(self->b, 2);
	ASSERT_NE(NULL, held);

	memset(status, 0xcc, sizeof(status));
	ASSERT_EQ(0, do_check(self->fd, 0, 0, status, &check));
	EXPECT_EQ(6, check.done);
	EXPECT_EQ(3, check.refused);
	EXPECT_EQ(0, status[0]);
	EXPECT_EQ(0, status[1]);
	EXPECT_EQ(-EBUSY, status[2]);
	EXPECT_EQ(0, status[3]);
	EXPECT_EQ(-ENOENT, status[4]);
	EXPECT_EQ(-ENOENT, status[5]);

	domain_release(held);
	/* A part, and no array. */
	memset(status, 0xcc, sizeof(status));
	ASSERT_EQ(0, do_check(self->fd, 2, 2, status, &check));
	EXPECT_EQ(2, check.done);
	EXPECT_EQ(0, check.refused);
	EXPECT_EQ(0, status[0]);
	EXPECT_EQ(0, status[1]);
	EXPECT_EQ((__s32)0xcccccccc, status[2]);
	ASSERT_EQ(0, do_check(self->fd, 3, 0, NULL, &check));
	EXPECT_EQ(3, check.done);
	EXPECT_EQ(2, check.refused);

	EXPECT_HOME(0, FRAMES);
	EXPECT_EQ(VMBEAM_STATE_LOADED, get_status(self->fd).state);
	EXPECT_TRUE(fdinfo_has(self->fd, "hypercalls:\t0"));
}

TEST_F(pair, granted_frame)
{
	struct vmbeam_commit commit;
	__s32 status[4];
	void *page;

	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 0, 0, 4));
	page = domain_grant(self->a, 2);
	ASSERT_NE(NULL, page) {
		TH_LOG("grant: %s", strerror(errno));
	}
	ASSERT_EQ(0, do_commit(self->fd, 0, 0, status, &commit));
	EXPECT_EQ(3, commit.swapped);
	EXPECT_EQ(0, status[1]);
	EXPECT_EQ(-EBUSY, status[2]);
	EXPECT_EQ(0, status[3]);
	domain_ungrant(page);
	EXPECT_HOME(2, 1);
	EXPECT_AWAY(3, 1);
}

TEST_F(pair, frame_of_the_hypervisor)
{
	__s32 status[2];

	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 100, 0, 1));
	ASSERT_EQ(0, add_one(self->fd, 1, 100, 1));
	ASSERT_EQ(0, domain_add_xen_page(self->a, 100));
	ASSERT_EQ(0, domain_add_xen_page(self->b, 100));
	ASSERT_EQ(0, do_check(self->fd, 0, 0, status, NULL));
	EXPECT_EQ(-EPERM, status[0]);
	EXPECT_EQ(-EPERM, status[1]);
	ASSERT_EQ(0, do_commit(self->fd, 0, 0, status, NULL));
	EXPECT_EQ(-EPERM, status[0]);
	EXPECT_EQ(-EPERM, status[1]);
	EXPECT_HOME(0, FRAMES);
}

TEST_F(pair, check_bad_calls)
{
	char *page = page_before_hole();

	ASSERT_NE(NULL, page);
	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 0, 0, 8));
	EXPECT_FAIL(EINVAL, do_check(self->fd, 8, 0, NULL, NULL));
	EXPECT_FAIL(EINVAL, do_check(self->fd, 0, 9, NULL, NULL));
	EXPECT_FAIL(EINVAL, do_check(self->fd, 7, 2, NULL, NULL));
	EXPECT_FAIL(EINVAL, do_check(self->fd, UINT64_MAX, 2, NULL, NULL));
	EXPECT_FAIL(EINVAL, do_check(self->fd, 1, UINT64_MAX, NULL, NULL));
	/* More than there can be. */
	EXPECT_EQ(0, do_check_after(self->fd, 3, 2, 3, NULL, NULL));
	EXPECT_FAIL(EINVAL, do_check_after(self->fd, 3, 2, 4, NULL, NULL));
	EXPECT_FAIL(EFAULT, do_check(self->fd, 0, 0, (void *)(page + 4096), NULL));
	EXPECT_FAIL(EFAULT, do_check(self->fd, 0, 0, (void *)(page + 4096 - 16), NULL));
}

TEST_F(pair, commit)
{
	struct vmbeam_commit commit;
	struct vmbeam_status state;
	__s32 status[FRAMES];
	long pages_a = domain_pages(self->a), pages_b = domain_pages(self->b);
	unsigned int i;

	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 0, 0, 10));
	ASSERT_EQ(0, add_one(self->fd, 20, 20, 30));
	memset(status, 0xcc, sizeof(status));
	ASSERT_EQ(0, do_commit(self->fd, 0, 0, status, &commit));
	EXPECT_EQ(40, commit.cursor);
	EXPECT_EQ(40, commit.swapped);
	EXPECT_EQ(0, commit.refused);
	for (i = 0; i < 40; i++)
		EXPECT_EQ(0, status[i]);
	EXPECT_EQ((__s32)0xcccccccc, status[40]);

	EXPECT_AWAY(0, 10);
	EXPECT_HOME(10, 10);
	EXPECT_AWAY(20, 30);
	EXPECT_HOME(50, FRAMES - 50);
	EXPECT_EQ(pages_a, domain_pages(self->a));
	EXPECT_EQ(pages_b, domain_pages(self->b));

	state = get_status(self->fd);
	EXPECT_EQ(VMBEAM_STATE_COMMITTED, state.state);
	EXPECT_EQ(40, state.cursor);
	EXPECT_EQ(40, state.swapped);
	EXPECT_EQ(0, state.refused);
	EXPECT_TRUE(fdinfo_has(self->fd, "hypercalls:\t1"));
	EXPECT_TRUE(fdinfo_has(self->fd, "batches:\t1"));
	/* All CPUs, whatever has run on them. */
	EXPECT_TRUE(fdinfo_has(self->fd, "tlb-flushes:\t1"));
	/* Of each pair both entries are removed and then written. */
	EXPECT_TRUE(fdinfo_has(self->fd, "p2m-writes:\t160"));
	EXPECT_TRUE(fdinfo_has(self->fd, "superpages:\t0"));
	EXPECT_TRUE(fdinfo_has(self->fd, "splits:\t0"));
	EXPECT_TRUE(fdinfo_has(self->fd, "merges:\t0"));

	/* Once is enough. */
	EXPECT_FAIL(EBADFD, do_commit(self->fd, 40, 0, NULL, NULL));
	EXPECT_FAIL(EBADFD, do_commit(self->fd, 0, 0, NULL, NULL));
	EXPECT_FAIL(EBADFD, add_one(self->fd, 60, 60, 1));
	EXPECT_AWAY(20, 30);
}

TEST_F(pair, commit_different_frames)
{
	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 3, 40, 7));
	ASSERT_EQ(0, do_commit(self->fd, 0, 0, NULL, NULL));
	EXPECT_EQ(0, domain_check(self->a, TAG_B, 3, 7, 40));
	EXPECT_EQ(0, domain_check(self->b, TAG_A, 40, 7, 3));
	EXPECT_EQ(0, domain_check(self->a, TAG_A, 0, 3, 0));
	EXPECT_EQ(0, domain_check(self->a, TAG_A, 10, FRAMES - 10, 10));
	EXPECT_EQ(0, domain_check(self->b, TAG_B, 0, 40, 0));
	EXPECT_EQ(0, domain_check(self->b, TAG_B, 47, FRAMES - 47, 47));
}

TEST_F(pair, commit_passes_over_what_is_refused)
{
	struct vmbeam_commit commit;
	struct vmbeam_status state;
	__s32 status[FRAMES + 1];
	void *held;

	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 0, 0, FRAMES));
	ASSERT_EQ(0, add_one(self->fd, FRAMES + 9, FRAMES + 9, 1));
	held = domain_hold(self->a, 5);
	ASSERT_NE(NULL, held);
	ASSERT_EQ(0, do_commit(self->fd, 0, 0, status, &commit));
	EXPECT_EQ(FRAMES + 1, commit.cursor);
	EXPECT_EQ(FRAMES - 1, commit.swapped);
	EXPECT_EQ(2, commit.refused);
	EXPECT_EQ(0, status[4]);
	EXPECT_EQ(-EBUSY, status[5]);
	EXPECT_EQ(0, status[6]);
	EXPECT_EQ(-ENOENT, status[FRAMES]);
	state = get_status(self->fd);
	EXPECT_EQ(VMBEAM_STATE_COMMITTED, state.state);
	EXPECT_EQ(FRAMES - 1, state.swapped);
	EXPECT_EQ(2, state.refused);
	domain_release(held);
	EXPECT_AWAY(0, 5);
	EXPECT_HOME(5, 1);
	EXPECT_AWAY(6, FRAMES - 6);

	/* The way back passes over them too. */
	ASSERT_EQ(0, do_rollback(self->fd, FRAMES + 1, NULL));
	EXPECT_HOME(0, FRAMES);
	state = get_status(self->fd);
	EXPECT_EQ(VMBEAM_STATE_ROLLED_BACK, state.state);
	EXPECT_EQ(0, state.swapped);
	EXPECT_EQ(0, state.refused);
}

TEST_F(pair, commit_in_parts_and_stale_cursors)
{
	struct vmbeam_commit commit;

	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 0, 0, 30));

	EXPECT_FAIL(ESTALE, do_commit(self->fd, 1, 0, NULL, &commit));
	EXPECT_EQ(0, commit.cursor);
	EXPECT_HOME(0, 30);

	ASSERT_EQ(0, do_commit(self->fd, 0, 10, NULL, &commit));
	EXPECT_EQ(10, commit.cursor);
	EXPECT_EQ(10, commit.swapped);
	EXPECT_EQ(VMBEAM_STATE_COMMITTING, get_status(self->fd).state);
	EXPECT_AWAY(0, 10);
	EXPECT_HOME(10, 20);

	/* The same again, as after a lost answer: nothing is swapped twice. */
	EXPECT_FAIL(ESTALE, do_commit(self->fd, 0, 10, NULL, &commit));
	EXPECT_EQ(10, commit.cursor);
	EXPECT_FAIL(ESTALE, do_commit(self->fd, 30, 0, NULL, &commit));
	EXPECT_FAIL(ESTALE, do_commit(self->fd, UINT64_MAX, 0, NULL, &commit));
	EXPECT_EQ(10, commit.cursor);
	EXPECT_FAIL(EINVAL, do_commit(self->fd, 10, 21, NULL, NULL));
	EXPECT_FAIL(EINVAL, do_commit(self->fd, 10, UINT64_MAX, NULL, NULL));
	EXPECT_FAIL(EBADFD, add_one(self->fd, 40, 40, 1));
	EXPECT_AWAY(0, 10);
	EXPECT_HOME(10, 20);

	ASSERT_EQ(0, do_commit(self->fd, 10, 20, NULL, &commit));
	EXPECT_EQ(30, commit.cursor);
	EXPECT_EQ(VMBEAM_STATE_COMMITTED, get_status(self->fd).state);
	EXPECT_AWAY(0, 30);
}

TEST_F(pair, commit_bad_pointers_move_nothing)
{
	char *page = page_before_hole();
	struct vmbeam_commit *arg;

	ASSERT_NE(NULL, page);
	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 0, 0, 8));
	EXPECT_FAIL(EFAULT, do_commit(self->fd, 0, 0, (void *)(page + 4096), NULL));
	EXPECT_FAIL(EFAULT, do_commit(self->fd, 0, 0, (void *)(page + 4096 - 16), NULL));
	EXPECT_FAIL(EFAULT, do_commit(self->fd, 0, 0, (void *)-16UL, NULL));
	/* Far from its beginning. These pairs would be refused. */
	ASSERT_EQ(0, add_one(self->fd, FRAMES, FRAMES, 200));
	EXPECT_FAIL(EFAULT, do_commit(self->fd, 0, 0, (void *)(page + 4096 - 4 * 150), NULL));

	/* The request can be read and not written. */
	arg = (void *)page;
	memset(arg, 0, sizeof(*arg));
	arg->size = sizeof(*arg);
	ASSERT_EQ(0, mprotect(page, 4096, PROT_READ));
	EXPECT_FAIL(EFAULT, ioctl(self->fd, VMBEAM_IOCTL_COMMIT, arg));

	EXPECT_EQ(VMBEAM_STATE_LOADED, get_status(self->fd).state);
	EXPECT_HOME(0, 8);
}

TEST_F(pair, rollback)
{
	struct vmbeam_rollback rollback;
	struct vmbeam_status state;

	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 0, 20, 10));
	ASSERT_EQ(0, add_one(self->fd, 20, 0, 10));
	EXPECT_FAIL(EBADFD, do_rollback(self->fd, 0, NULL));
	ASSERT_EQ(0, do_commit(self->fd, 0, 0, NULL, NULL));
	EXPECT_EQ(0, domain_check(self->a, TAG_B, 0, 10, 20));

	EXPECT_FAIL(ESTALE, do_rollback(self->fd, 0, &rollback));
	EXPECT_EQ(20, rollback.cursor);
	EXPECT_FAIL(ESTALE, do_rollback(self->fd, 21, &rollback));
	EXPECT_EQ(0, domain_check(self->a, TAG_B, 0, 10, 20));

	ASSERT_EQ(0, do_rollback(self->fd, 20, &rollback));
	EXPECT_EQ(0, rollback.cursor);
	EXPECT_EQ(20, rollback.restored);
	EXPECT_HOME(0, FRAMES);
	state = get_status(self->fd);
	EXPECT_EQ(VMBEAM_STATE_ROLLED_BACK, state.state);
	EXPECT_EQ(0, state.cursor);
	EXPECT_EQ(0, state.swapped);

	EXPECT_FAIL(EBADFD, do_rollback(self->fd, 0, NULL));
	EXPECT_FAIL(EBADFD, do_commit(self->fd, 0, 0, NULL, NULL));
	EXPECT_FAIL(EBADFD, add_one(self->fd, 40, 40, 1));
	EXPECT_HOME(0, FRAMES);
}

/* Nor does a rollback move anything that it could not tell. */
TEST_F(pair, rollback_bad_pointers_move_nothing)
{
	char *page = page_before_hole();
	struct vmbeam_rollback *arg;

	ASSERT_NE(NULL, page);
	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 0, 0, FRAMES));
	ASSERT_EQ(0, do_commit(self->fd, 0, 0, NULL, NULL));
	/* It can be read and not written. */
	arg = (void *)(page + 4096 - sizeof(*arg));
	poison(arg, sizeof(*arg));
	arg->expected = FRAMES;
	ASSERT_EQ(0, mprotect(page, 4096, PROT_READ));
	EXPECT_FAIL(EFAULT, ioctl(self->fd, VMBEAM_IOCTL_ROLLBACK, arg));
	EXPECT_EQ(VMBEAM_STATE_COMMITTED, get_status(self->fd).state);
	EXPECT_EQ(FRAMES, get_status(self->fd).swapped);
	EXPECT_AWAY(0, FRAMES);
	/* Nor tell where the cursor is. */
	ASSERT_EQ(0, mprotect(page, 4096, PROT_READ | PROT_WRITE));
	arg->expected = 1;
	ASSERT_EQ(0, mprotect(page, 4096, PROT_READ));
	EXPECT_FAIL(EFAULT, ioctl(self->fd, VMBEAM_IOCTL_ROLLBACK, arg));
	munmap(page, 8192);
	ASSERT_EQ(0, do_rollback(self->fd, FRAMES, NULL));
	EXPECT_HOME(0, FRAMES);
}

TEST_F(pair, rollback_of_a_part)
{
	struct vmbeam_rollback rollback;

	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 0, 0, 30));
	ASSERT_EQ(0, do_commit(self->fd, 0, 13, NULL, NULL));
	ASSERT_EQ(0, do_rollback(self->fd, 13, &rollback));
	EXPECT_EQ(13, rollback.restored);
	EXPECT_HOME(0, FRAMES);
}

TEST_F(pair, rollback_stops_at_what_is_held)
{
	struct vmbeam_rollback rollback;
	struct vmbeam_status state;
	void *held, *below;

	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 0, 0, 30));
	ASSERT_EQ(0, do_commit(self->fd, 0, 0, NULL, NULL));
	held = domain_hold(self->b, 11);
	ASSERT_NE(NULL, held);
	/* The first one on the way back counts. */
	below = domain_hold(self->a, 4);
	ASSERT_NE(NULL, below);

	ASSERT_EQ(0, do_rollback(self->fd, 30, &rollback));
	EXPECT_EQ(12, rollback.cursor);
	EXPECT_EQ(18, rollback.restored);
	EXPECT_AWAY(0, 11);
	EXPECT_HOME(12, 18);
	state = get_status(self->fd);
	EXPECT_EQ(VMBEAM_STATE_ROLLING_BACK, state.state);
	EXPECT_EQ(12, state.swapped);
	EXPECT_FAIL(EBADFD, do_commit(self->fd, 12, 0, NULL, NULL));

	/* No progress: the pair's own status. */
	EXPECT_FAIL(EBUSY, do_rollback(self->fd, 12, NULL));
	EXPECT_EQ(12, get_status(self->fd).cursor);
	EXPECT_AWAY(0, 11);

	domain_release(held);
	domain_release(below);
	ASSERT_EQ(0, do_rollback(self->fd, 12, &rollback));
	EXPECT_EQ(0, rollback.cursor);
	EXPECT_EQ(12, rollback.restored);
	EXPECT_HOME(0, FRAMES);
}

TEST_F(pair, domain_goes_away)
{
	__s32 status[8];

	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 0, 0, 8));
	ASSERT_EQ(0, do_commit(self->fd, 0, 4, NULL, NULL));
	domain_destroy(self->b);
	self->b = NO_DOMAIN;
	EXPECT_FAIL(ESRCH, do_check(self->fd, 0, 0, NULL, NULL));
	memset(status, 0xcc, sizeof(status));
	EXPECT_FAIL(ESRCH, do_commit(self->fd, 4, 0, status, NULL));
	/* Not reached. */
	EXPECT_EQ(LEFT_ALONE, status[0]);
	EXPECT_EQ(LEFT_ALONE, status[3]);
	EXPECT_EQ((__s32)0xcccccccc, status[4]);
	EXPECT_FAIL(ESRCH, do_rollback(self->fd, 4, NULL));
	EXPECT_EQ(4, get_status(self->fd).cursor);
}

TEST_F(pair, mode_changes_later)
{
	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 0, 0, 8));
	ASSERT_EQ(0, do_commit(self->fd, 0, 4, NULL, NULL));
	if (domain_log_dirty(self->a))
		SKIP(return, "log-dirty mode: %s", strerror(errno));
	ASSERT_EQ(0, do_check(self->fd, 0, 0, NULL, NULL));
	ASSERT_EQ(0, do_commit(self->fd, 4, 0, NULL, NULL));
	ASSERT_EQ(0, do_rollback(self->fd, 8, NULL));
	EXPECT_EQ(0, get_status(self->fd).cursor);
	EXPECT_HOME(0, FRAMES);
}

struct worker {
	pthread_t thread;
	int fd;
	unsigned int swapped, stale;
};

/* Commit pair by pair, from wherever the other thread has got to. */
static void *commit_pairs(void *arg)
{
	struct worker *worker = arg;
	__u64 cursor = 0;

	while (cursor < FRAMES) {
		struct vmbeam_commit commit;

		if (!do_commit(worker->fd, cursor, 1, NULL, &commit))
			worker->swapped += commit.swapped;
		else if (errno == ESTALE)
			worker->stale++;
		else
			break;
		cursor = commit.cursor;
	}
	return NULL;
}

TEST_F(pair, two_threads)
{
	struct worker workers[2] = { { .fd = self->fd }, { .fd = self->fd } };
	struct vmbeam_status state;
	int i;

	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 0, 0, FRAMES));
	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, pthread_create(&workers[i].thread, NULL, commit_pairs, &workers[i]));
	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, pthread_join(workers[i].thread, NULL));
	/* Each pair by exactly one of them. */
	EXPECT_EQ(FRAMES, workers[0].swapped + workers[1].swapped);
	state = get_status(self->fd);
	EXPECT_EQ(VMBEAM_STATE_COMMITTED, state.state);
	EXPECT_EQ(FRAMES, state.swapped);
	EXPECT_AWAY(0, FRAMES);
}

TEST_HARNESS_MAIN
