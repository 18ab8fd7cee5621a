// SPDX-License-Identifier: GPL-2.0-only
/*
 * Selftest of /dev/vmbeam: sessions that do something else than swap. Frames of
 * which what is in them stays, and relocation, which only the model of a
 * hypervisor can be brought to here.
 */

#include "vmbeam_test.h"

/* Several hypercalls, as the runs do not merge. */
#define MANY 1200

static int ask(__u32 op, __u32 domid, __u64 first, __u64 nr, void *ptr)
{
	struct vmbeam_debug arg = {
		.op = op,
		.domid = domid,
		.first = first,
		.nr = nr,
		.ptr = PTR(ptr),
	};
	int fd = open(DEVICE, O_RDWR | O_CLOEXEC);
	int ret = ioctl(fd, VMBEAM_IOCTL_DEBUG, &arg);

	close(fd);
	return ret;
}

static int depopulate(__u32 domid, __u64 first, __u64 nr)
{
	return ask(VMBEAM_DEBUG_DEPOPULATE, domid, first, nr, NULL);
}

/* This many pages more than it has now. */
static int allow(__u32 domid, __u64 more)
{
	return ask(VMBEAM_DEBUG_LIMIT, domid, 0, domain_pages(domid) + more, NULL);
}

/* Pages that the hypervisor has for those who give. */
static int reserve(__u64 pages)
{
	return ask(VMBEAM_DEBUG_RESERVE, 0, 0, pages, NULL);
}

/* The machine frame at @gfn; 0 for populate-on-demand. */
static __u64 machine(__u32 domid, __u64 gfn)
{
	__u64 frame = UINT64_MAX;

	return ask(VMBEAM_DEBUG_MACHINE, domid, gfn, 1, &frame) ? UINT64_MAX : frame;
}

/* How many of these frames do not read as zeroes. */
static long not_zero(__u32 domid, __u64 first, __u64 nr)
{
	__u64 *words = calloc(nr, sizeof(*words));
	long bad = 0;
	__u64 i;

	if (!words || ask(VMBEAM_DEBUG_READ, domid, first, nr, words))
		bad = -1;
	for (i = 0; bad >= 0 && i < nr; i++)
		bad += words[i] != 0;
	free(words);
	return bad;
}

/* One run a pair, none of which follows on from the one before, from @first on. */
static int add_apart(int fd, __u64 first, __u32 nr)
{
	struct vmbeam_run *runs = calloc(nr, sizeof(*runs));
	int ret;
	__u32 i;

	if (!runs)
		return -1;
	for (i = 0; i < nr; i++) {
		runs[i].gfn_a = first + nr - 1 - i;
		runs[i].gfn_b = first + nr - 1 - i;
		runs[i].nr = 1;
	}
	ret = do_add(fd, runs, nr, NULL);
	free(runs);
	return ret;
}

/* ---- What is in the frames stays ---- */

FIXTURE(keep) {
	int fd;
	__u32 a, b;
	bool model;
};

FIXTURE_SETUP(keep)
{
	self->a = NO_DOMAIN;
	self->b = NO_DOMAIN;
	self->fd = open(DEVICE, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->fd);
	if (!(features(self->fd) & VMBEAM_FEATURE_KEEP))
		SKIP(return, "this hypervisor has no such swap of frames");
	self->model = is_model(self->fd);
	ASSERT_EQ(0, domains_open(self->model));
	ASSERT_EQ(0, count_records(NULL));
	self->a = domain_create(DOMAIN_HAP, FRAMES);
	self->b = domain_create(DOMAIN_HAP, FRAMES);
	ASSERT_NE(NO_DOMAIN, self->a);
	ASSERT_NE(NO_DOMAIN, self->b);
	ASSERT_EQ(0, domain_fill(self->a, TAG_A, 0, FRAMES));
	ASSERT_EQ(0, domain_fill(self->b, TAG_B, 0, FRAMES));
}

FIXTURE_TEARDOWN(keep)
{
	close(self->fd);
	forget_records();
	domain_destroy(self->a);
	domain_destroy(self->b);
	domains_close();
}

TEST_F(keep, flags)
{
	static const struct {
		__u32 flags;
		const char *line;
	} modes[] = {
		{ 0, "mode:\tswap" },
		{ VMBEAM_BIND_KEEP, "mode:\tkeep" },
		{ VMBEAM_BIND_TO_B, "mode:\tto-b" },
		{ VMBEAM_BIND_TO_A, "mode:\tto-a" },
	};
	__u32 flags;
	unsigned int i;

	for (flags = 0; flags < 8; flags++) {
		if (__builtin_popcount(flags) > 1)
			EXPECT_FAIL(EINVAL, do_bind_as(self->fd, self->a, self->b, flags));
	}
	for (i = 0; i < ARRAY_SIZE(modes); i++) {
		ASSERT_EQ(0, do_bind_as(self->fd, self->a, self->b, modes[i].flags));
		EXPECT_EQ(modes[i].flags, get_status(self->fd).mode);
		EXPECT_EQ(0, get_status(self->fd).moved);
		EXPECT_TRUE(fdinfo_has(self->fd, modes[i].line));
		close(self->fd);
		self->fd = open(DEVICE, O_RDWR | O_CLOEXEC);
		ASSERT_LE(0, self->fd);
	}
}

TEST_F(keep, there_and_back)
{
	struct vmbeam_commit commit;
	struct vmbeam_check check;
	__u64 a = 0, b = 0;

	if (self->model) {
		a = machine(self->a, 7);
		b = machine(self->b, 9);
	}
	ASSERT_EQ(0, do_bind_as(self->fd, self->a, self->b, VMBEAM_BIND_KEEP));
	ASSERT_EQ(0, add_one(self->fd, 0, 2, FRAMES - 2));
	ASSERT_EQ(0, do_check(self->fd, 0, 0, NULL, &check));
	EXPECT_EQ(0, check.refused);
	EXPECT_EQ(0, check.moves);
	ASSERT_EQ(0, do_commit(self->fd, 0, 0, NULL, &commit));
	EXPECT_EQ(FRAMES - 2, commit.swapped);
	EXPECT_EQ(0, commit.moved);
	EXPECT_HOME(0, FRAMES);
	if (self->model) {
		/* It is not that nothing was done. */
		EXPECT_EQ(b, machine(self->a, 7));
		EXPECT_EQ(a, machine(self->b, 9));
	}
	ASSERT_EQ(0, do_rollback(self->fd, FRAMES - 2, NULL));
	EXPECT_HOME(0, FRAMES);
	if (self->model) {
		EXPECT_EQ(a, machine(self->a, 7));
		EXPECT_EQ(b, machine(self->b, 9));
	}
}

/* There is no half way, and so nothing to put back or to keep. */
TEST_F(keep, closed_half_way)
{
	__u64 a = 0, b = 0;
	void *held;

	if (self->model) {
		a = machine(self->a, 7);
		b = machine(self->b, 7);
	}
	ASSERT_EQ(0, do_bind_as(self->fd, self->a, self->b, VMBEAM_BIND_KEEP));
	ASSERT_EQ(0, add_one(self->fd, 0, 0, FRAMES));
	ASSERT_EQ(0, do_commit(self->fd, 0, FRAMES / 2, NULL, NULL));
	held = domain_hold(self->b, 3);
	ASSERT_NE(NULL, held);
	close(self->fd);
	self->fd = open(DEVICE, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->fd);
	EXPECT_EQ(0, count_records(NULL));
	EXPECT_HOME(0, FRAMES);
	if (self->model) {
		EXPECT_EQ(b, machine(self->a, 7));
		EXPECT_EQ(a, machine(self->b, 7));
	}
	domain_release(held);
	/* Nor is anything in the way of another session. */
	EXPECT_EQ(0, do_bind(self->fd, self->a, self->b));
}

/* ---- Relocation, in both directions ---- */

FIXTURE(relocation) {
	int fd;
	__u32 a, b, giver, receiver;
	long gives, receives;
};

FIXTURE_VARIANT(relocation) {
	__u32 flags;
};

FIXTURE_VARIANT_ADD(relocation, to_b) {
	.flags = VMBEAM_BIND_TO_B,
};

FIXTURE_VARIANT_ADD(relocation, to_a) {
	.flags = VMBEAM_BIND_TO_A,
};

#define TAG_GIVER (self->giver == self->a ? TAG_A : TAG_B)
#define TAG_RECEIVER (self->giver == self->a ? TAG_B : TAG_A)

/* The pages of both are what they were at first, and so many more or fewer. */
#define EXPECT_PAGES(nr) do {							\
	long moved_ = (nr);							\
										\
	EXPECT_EQ(self->gives - moved_, domain_pages(self->giver));		\
	EXPECT_EQ(self->receives + moved_, domain_pages(self->receiver));	\
} while (0)

FIXTURE_SETUP(relocation)
{
	self->a = NO_DOMAIN;
	self->b = NO_DOMAIN;
	self->fd = open(DEVICE, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->fd);
	if (!is_model(self->fd))
		SKIP(return, "a real hypervisor, or none");
	ASSERT_TRUE(features(self->fd) & VMBEAM_FEATURE_RELOCATE);
	ASSERT_EQ(0, domains_open(true));
	ASSERT_EQ(0, count_records(NULL));
	self->a = domain_create(DOMAIN_HAP, MANY);
	self->b = domain_create(DOMAIN_HAP, MANY);
	ASSERT_NE(NO_DOMAIN, self->a);
	ASSERT_NE(NO_DOMAIN, self->b);
	ASSERT_EQ(0, domain_fill(self->a, TAG_A, 0, MANY));
	ASSERT_EQ(0, domain_fill(self->b, TAG_B, 0, MANY));
	self->giver = variant->flags == VMBEAM_BIND_TO_B ? self->a : self->b;
	self->receiver = variant->flags == VMBEAM_BIND_TO_B ? self->b : self->a;
	/* The receiver has no memory from 100 on. */
	ASSERT_EQ(0, depopulate(self->receiver, 100, MANY - 100));
	self->gives = domain_pages(self->giver);
	self->receives = domain_pages(self->receiver);
	ASSERT_EQ(0, do_bind_as(self->fd, self->a, self->b, variant->flags));
}

FIXTURE_TEARDOWN(relocation)
{
	close(self->fd);
	forget_records();
	domain_destroy(self->a);
	domain_destroy(self->b);
	domains_close();
}

/* Nothing has happened to anybody. */
#define EXPECT_AS_BEFORE() do {						\
	EXPECT_HOME(0, 100);						\
	EXPECT_EQ(0, domain_check(self->giver, TAG_GIVER, 100, MANY - 100, 100)); \
	EXPECT_EQ(0, not_zero(self->receiver, 100, MANY - 100));	\
	EXPECT_PAGES(0);						\
} while (0)

TEST_F(relocation, there_and_back)
{
	__u64 first = machine(self->giver, 100), last = machine(self->giver, 119);
	struct vmbeam_rollback rollback;
	struct vmbeam_commit commit;
	struct vmbeam_status status;
	struct vmbeam_check check;

	/* 20 of each kind. */
	ASSERT_EQ(0, add_one(self->fd, 80, 80, 40));
	ASSERT_EQ(0, do_check(self->fd, 0, 0, NULL, &check));
	EXPECT_EQ(40, check.done);
	EXPECT_EQ(0, check.refused);
	EXPECT_EQ(20, check.moves);
	EXPECT_AS_BEFORE();
	ASSERT_EQ(0, do_commit(self->fd, 0, 0, NULL, &commit));
	EXPECT_EQ(40, commit.swapped);
	EXPECT_EQ(20, commit.moved);
	status = get_status(self->fd);
	EXPECT_EQ(20, status.moved);
	EXPECT_EQ(0, status.reserved);
	EXPECT_TRUE(fdinfo_has(self->fd, "moved:\t20"));
	EXPECT_PAGES(20);
	EXPECT_AWAY(80, 20);
	EXPECT_EQ(0, domain_check(self->receiver, TAG_GIVER, 100, 20, 100));
	EXPECT_EQ(0, not_zero(self->giver, 100, 20));
	EXPECT_EQ(first, machine(self->receiver, 100));
	EXPECT_EQ(last, machine(self->receiver, 119));
	EXPECT_EQ(0, machine(self->giver, 100));

	ASSERT_EQ(0, do_rollback(self->fd, 40, &rollback));
	EXPECT_EQ(40, rollback.restored);
	EXPECT_EQ(0, get_status(self->fd).moved);
	EXPECT_EQ(VMBEAM_STATE_ROLLED_BACK, get_status(self->fd).state);
	EXPECT_EQ(first, machine(self->giver, 100));
	EXPECT_EQ(last, machine(self->giver, 119));
	EXPECT_EQ(0, machine(self->receiver, 100));
	EXPECT_AS_BEFORE();
}

/* What the giver has not got goes as zeroes, and stays where it was. */
TEST_F(relocation, of_nothing)
{
	struct vmbeam_commit commit;
	struct vmbeam_check check;
	__u64 frame = machine(self->receiver, 51);
	__s32 status[4];

	ASSERT_EQ(0, depopulate(self->giver, 51, 1));
	ASSERT_EQ(0, depopulate(self->giver, 101, 1));
	self->gives -= 2;
	ASSERT_EQ(0, add_one(self->fd, 50, 50, 2));
	ASSERT_EQ(0, add_one(self->fd, 100, 100, 2));
	memset(status, 0xcc, sizeof(status));
	ASSERT_EQ(0, do_check(self->fd, 0, 0, status, &check));
	EXPECT_EQ(2, check.refused);
	EXPECT_EQ(1, check.moves);
	EXPECT_EQ(0, domain_check(self->receiver, TAG_RECEIVER, 50, 2, 50));
	memset(status, 0xcc, sizeof(status));
	ASSERT_EQ(0, do_commit(self->fd, 0, 0, status, &commit));
	EXPECT_EQ(2, commit.swapped);
	EXPECT_EQ(2, commit.refused);
	EXPECT_EQ(1, commit.moved);
	EXPECT_EQ(0, status[0]);
	EXPECT_EQ(-ENODATA, status[1]);
	EXPECT_EQ(0, status[2]);
	EXPECT_EQ(-ENODATA, status[3]);
	EXPECT_PAGES(1);
	EXPECT_EQ(0, not_zero(self->receiver, 51, 1));
	EXPECT_EQ(frame, machine(self->receiver, 51));
	EXPECT_EQ(0, machine(self->receiver, 101));

	/* It was not swapped, so it is not put back. */
	ASSERT_EQ(0, do_rollback(self->fd, 4, NULL));
	EXPECT_PAGES(0);
	EXPECT_HOME(50, 1);
	EXPECT_EQ(0, not_zero(self->receiver, 51, 1));
	EXPECT_EQ(0, not_zero(self->giver, 51, 1));
}

/* Who does not ask for it gets none, in whichever direction. */
TEST_F(relocation, not_without_a_flag)
{
	static const __u32 others[] = { 0, VMBEAM_BIND_KEEP };
	struct vmbeam_commit commit;
	__s32 status[2];
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(others); i++) {
		REOPEN();
		ASSERT_EQ(0, do_bind_as(self->fd, self->a, self->b, others[i]));
		ASSERT_EQ(0, add_one(self->fd, 100, 100, 2));
		memset(status, 0xcc, sizeof(status));
		ASSERT_EQ(0, do_commit(self->fd, 0, 0, status, &commit));
		EXPECT_EQ(2, commit.refused);
		EXPECT_EQ(-ENODATA, status[0]);
		EXPECT_EQ(-ENODATA, status[1]);
		EXPECT_AS_BEFORE();
	}
}

/* No more than the receiver may have: the same whether asked or done. */
TEST_F(relocation, up_to_the_limit)
{
	const unsigned int all = MANY - 100, room = 700;
	__s32 status[MANY], again[MANY];
	struct vmbeam_commit commit;
	struct vmbeam_check check;
	unsigned int i, at;

	ASSERT_EQ(0, add_apart(self->fd, 100, all));
	ASSERT_EQ(0, allow(self->receiver, room));
	memset(status, 0xcc, sizeof(status));
	ASSERT_EQ(0, do_check(self->fd, 0, 0, status, &check));
	EXPECT_EQ(room, check.moves);
	EXPECT_EQ(all - room, check.refused);
	for (i = 0; i < all; i++)
		ASSERT_EQ(i < room ? 0 : -ENOSPC, status[i]);

	/* In pieces, while others who have the file look at something else. */
	memset(again, 0xcc, sizeof(again));
	for (at = 0, i = 0; at < all; at += check.done, i += check.moves) {
		ASSERT_EQ(0, do_check(self->fd, 7, 1, NULL, NULL));
		ASSERT_EQ(0, do_check_after(self->fd, at, at + 300 < all ? 300 : 0, i,
					    again + at, &check));
	}
	EXPECT_EQ(room, i);
	EXPECT_EQ(0, memcmp(status, again, all * sizeof(*status)));
	/* From somewhere else: nothing is known of what is before. */
	ASSERT_EQ(0, do_check(self->fd, 500, 0, again, &check));
	EXPECT_EQ(all - 500, check.moves);
	EXPECT_EQ(0, check.refused);
	/* A part of them. */
	ASSERT_EQ(0, do_check(self->fd, 0, 500, NULL, &check));
	EXPECT_EQ(500, check.moves);

	/* And done, half of it, which is no longer to be counted then. */
	ASSERT_EQ(0, do_commit(self->fd, 0, 500, NULL, &commit));
	EXPECT_EQ(500, commit.moved);
	ASSERT_EQ(0, do_check(self->fd, 500, 0, again, &check));
	EXPECT_EQ(room - 500, check.moves);
	EXPECT_EQ(0, memcmp(status + 500, again, (all - 500) * sizeof(*status)));
	memset(again, 0xcc, sizeof(again));
	ASSERT_EQ(0, do_commit(self->fd, 500, 0, again, &commit));
	EXPECT_EQ(room - 500, commit.moved);
	EXPECT_EQ(0, memcmp(status + 500, again, (all - 500) * sizeof(*status)));
	EXPECT_PAGES(room);
	EXPECT_EQ(room, get_status(self->fd).moved);
	ASSERT_EQ(0, do_rollback(self->fd, all, NULL));
	EXPECT_EQ(0, get_status(self->fd).moved);
	EXPECT_AS_BEFORE();
}

TEST_F(relocation, closed_half_way)
{
	ASSERT_EQ(0, add_apart(self->fd, 0, MANY));
	ASSERT_EQ(0, do_commit(self->fd, 0, MANY / 2, NULL, NULL));
	EXPECT_PAGES(MANY / 2);
	REOPEN();
	EXPECT_EQ(0, count_records(NULL));
	EXPECT_AS_BEFORE();
}

TEST_F(relocation, record_and_adopt)
{
	struct vmbeam_record record;
	void *held;

	ASSERT_EQ(0, add_one(self->fd, 100, 100, 40));
	ASSERT_EQ(0, do_commit(self->fd, 0, 30, NULL, NULL));
	held = domain_hold(self->receiver, 109);
	ASSERT_NE(NULL, held);
	REOPEN();
	ASSERT_EQ(1, count_records(&record));
	EXPECT_EQ(-EBUSY, record.error);
	EXPECT_EQ(10, record.cursor);
	EXPECT_EQ(10, record.swapped);
	EXPECT_EQ(variant->flags, record.mode);
	EXPECT_EQ(10, record.moved);
	EXPECT_EQ(0, record.reserved2);
	EXPECT_PAGES(10);
	/* Whoever adopts it closes it again, and somebody else rolls it back. */
	ASSERT_EQ(0, do_adopt(self->fd, record.id));
	EXPECT_EQ(variant->flags, get_status(self->fd).mode);
	EXPECT_EQ(10, get_status(self->fd).moved);
	REOPEN();
	ASSERT_EQ(1, count_records(&record));
	domain_release(held);
	ASSERT_EQ(0, do_adopt(self->fd, record.id));
	ASSERT_EQ(0, do_rollback(self->fd, 10, NULL));
	EXPECT_AS_BEFORE();
}

TEST_F(relocation, adopted_and_closed)
{
	struct vmbeam_record record;
	void *held;

	ASSERT_EQ(0, add_one(self->fd, 100, 100, 40));
	ASSERT_EQ(0, do_commit(self->fd, 0, 30, NULL, NULL));
	held = domain_hold(self->receiver, 129);
	ASSERT_NE(NULL, held);
	REOPEN();
	ASSERT_EQ(1, count_records(&record));
	EXPECT_EQ(30, record.moved);
	domain_release(held);
	ASSERT_EQ(0, do_adopt(self->fd, record.id));
	REOPEN();
	EXPECT_EQ(0, count_records(NULL));
	EXPECT_AS_BEFORE();
}

/* The receiver has found that a frame is all zeroes, and let go of it. */
TEST_F(relocation, put_back_by_zeroes)
{
	struct vmbeam_rollback rollback;

	ASSERT_EQ(0, add_one(self->fd, 98, 98, 8));
	ASSERT_EQ(0, do_commit(self->fd, 0, 0, NULL, NULL));
	/* One that was swapped, and one that went over alone. */
	ASSERT_EQ(0, depopulate(self->receiver, 99, 1));
	ASSERT_EQ(0, depopulate(self->receiver, 102, 1));
	ASSERT_EQ(0, do_rollback(self->fd, 8, &rollback));
	EXPECT_EQ(8, rollback.restored);
	EXPECT_EQ(0, rollback.cursor);
	EXPECT_HOME(98, 1);
	EXPECT_EQ(0, not_zero(self->giver, 99, 1));
	EXPECT_EQ(0, not_zero(self->receiver, 99, 1));
	EXPECT_EQ(0, not_zero(self->giver, 102, 1));
	EXPECT_EQ(0, domain_check(self->giver, TAG_GIVER, 103, 3, 103));
	/* The model's domains have no cache where such frames would be. */
	EXPECT_EQ(self->gives - 1, domain_pages(self->giver));
	EXPECT_EQ(self->receives - 1, domain_pages(self->receiver));
	EXPECT_EQ(1, get_status(self->fd).moved);
}

/*
 * The giver has let go of a frame that it got in a swap: the receiver's goes back alone, and one
 * more has come back than went.
 */
TEST_F(relocation, comes_back_alone)
{
	struct vmbeam_rollback rollback;

	ASSERT_EQ(0, add_one(self->fd, 90, 90, 4));
	ASSERT_EQ(0, do_commit(self->fd, 0, 0, NULL, NULL));
	ASSERT_EQ(0, depopulate(self->giver, 91, 1));
	ASSERT_EQ(0, do_rollback(self->fd, 4, &rollback));
	EXPECT_EQ(4, rollback.restored);
	EXPECT_EQ(0, rollback.cursor);
	EXPECT_EQ(0, get_status(self->fd).moved);
	EXPECT_EQ(0, domain_check(self->giver, TAG_GIVER, 90, 4, 90));
	EXPECT_EQ(0, not_zero(self->receiver, 91, 1));
	EXPECT_EQ(self->gives, domain_pages(self->giver));
	EXPECT_EQ(self->receives - 1, domain_pages(self->receiver));
}

/* The giver has got what it gave, as it went on using it. */
TEST_F(relocation, given_again)
{
	ASSERT_EQ(0, add_one(self->fd, 100, 100, 8));
	ASSERT_EQ(0, do_commit(self->fd, 0, 0, NULL, NULL));
	ASSERT_EQ(0, domain_fill(self->giver, 0x7777, 103, 1));
	self->gives++;
	EXPECT_PAGES(8);
	ASSERT_EQ(0, do_rollback(self->fd, 8, NULL));
	EXPECT_EQ(0, domain_check(self->giver, TAG_GIVER, 100, 8, 100));
	EXPECT_EQ(0, domain_check(self->receiver, 0x7777, 103, 1, 103));
	EXPECT_PAGES(1);
	EXPECT_EQ(1, get_status(self->fd).moved);
}

/*
 * The hypervisor has no memory for the caches of those who give. That is a reason not to
 * begin, and none not to undo what was begun.
 */
TEST_F(relocation, hypervisor_without_memory)
{
	const unsigned int all = 700, some = 600, first = 100 + all - some;
	struct vmbeam_rollback rollback;
	struct vmbeam_commit commit;
	struct vmbeam_record record;
	struct vmbeam_check check;
	__s32 status[all];
	unsigned int i;
	void *held;

	ASSERT_EQ(0, add_apart(self->fd, 100, all));
	ASSERT_EQ(0, reserve(some));
	/* It is told by a check of them all, and met by the commit. */
	memset(status, 0xcc, sizeof(status));
	ASSERT_EQ(0, do_check(self->fd, 0, 0, status, &check));
	EXPECT_EQ(some, check.moves);
	for (i = 0; i < all; i++)
		ASSERT_EQ(i < some ? 0 : -ENOMEM, status[i]);
	memset(status, 0xcc, sizeof(status));
	ASSERT_EQ(0, do_commit(self->fd, 0, 0, status, &commit));
	EXPECT_EQ(some, commit.moved);
	EXPECT_EQ(all - some, commit.refused);
	for (i = 0; i < all; i++)
		ASSERT_EQ(i < some ? 0 : -ENOMEM, status[i]);
	EXPECT_PAGES(some);
	EXPECT_EQ(0, domain_check(self->receiver, TAG_GIVER, first, some, first));
	ASSERT_EQ(0, do_rollback(self->fd, all, &rollback));
	EXPECT_EQ(some, rollback.restored);
	EXPECT_EQ(0, rollback.cursor);
	EXPECT_AS_BEFORE();

	/* The same when nobody asks for it any more: closed, and adopted. */
	REOPEN();
	ASSERT_EQ(0, do_bind_as(self->fd, self->a, self->b, variant->flags));
	ASSERT_EQ(0, add_apart(self->fd, 100, all));
	ASSERT_EQ(0, reserve(some));
	ASSERT_EQ(0, do_commit(self->fd, 0, some, NULL, NULL));
	held = domain_hold(self->receiver, first);
	ASSERT_NE(NULL, held);
	REOPEN();
	ASSERT_EQ(1, count_records(&record));
	EXPECT_EQ(-EBUSY, record.error);
	domain_release(held);
	ASSERT_EQ(0, do_adopt(self->fd, record.id));
	REOPEN();
	EXPECT_EQ(0, count_records(NULL));
	EXPECT_AS_BEFORE();
}

/* Then it may have no room for what comes back, however that is cut into runs. */
TEST_F(relocation, no_way_back)
{
	struct vmbeam_record record;
	unsigned int i;

	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, i ? add_one(self->fd, 100, 100, 8) : add_apart(self->fd, 100, 8));
		ASSERT_EQ(0, do_commit(self->fd, 0, 4, NULL, NULL));
		ASSERT_EQ(0, allow(self->giver, 0));
		EXPECT_FAIL(ENOSPC, do_rollback(self->fd, 4, NULL));
		EXPECT_PAGES(4);
		ASSERT_EQ(0, allow(self->giver, 3));
		REOPEN();
		/* Three of them fit. */
		ASSERT_EQ(1, count_records(&record));
		EXPECT_EQ(-ENOSPC, record.error);
		EXPECT_EQ(1, record.swapped);
		EXPECT_PAGES(1);
		ASSERT_EQ(0, allow(self->giver, 1));
		ASSERT_EQ(0, do_adopt(self->fd, record.id));
		REOPEN();
		EXPECT_AS_BEFORE();
		ASSERT_EQ(0, do_bind_as(self->fd, self->a, self->b, variant->flags));
	}
}

/* Of one run the pairs that go back last come first in a hypercall. */
TEST_F(relocation, way_back_for_all_but_one)
{
	const unsigned int all = MANY - 100;
	struct vmbeam_rollback rollback;

	ASSERT_EQ(0, add_one(self->fd, 100, 100, all));
	ASSERT_EQ(0, do_commit(self->fd, 0, 0, NULL, NULL));
	ASSERT_EQ(0, allow(self->giver, all - 1));
	ASSERT_EQ(0, do_rollback(self->fd, all, &rollback));
	EXPECT_EQ(all - 1, rollback.restored);
	EXPECT_EQ(1, rollback.cursor);
	EXPECT_PAGES(1);
	EXPECT_FAIL(ENOSPC, do_rollback(self->fd, 1, NULL));
	ASSERT_EQ(0, allow(self->giver, 1));
	ASSERT_EQ(0, do_rollback(self->fd, 1, NULL));
	EXPECT_AS_BEFORE();
}

TEST_HARNESS_MAIN
