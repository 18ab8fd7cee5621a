// SPDX-License-Identifier: GPL-2.0-only
/*
 * Selftest of /dev/vmbeam: moves that end half way. Signals, threads that watch
 * and cancel, files that are closed, what the driver keeps then.
 */

#include <linux/userfaultfd.h>

#include "vmbeam_test.h"

#define MANY 6000

FIXTURE(many) {
	int fd;
	__u32 a, b;
};

FIXTURE_SETUP(many)
{
	self->a = NO_DOMAIN;
	self->b = NO_DOMAIN;
	self->fd = open(DEVICE, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->fd);
	if (!has_swap(self->fd))
		SKIP(return, "this hypervisor has no swap of frames");
	ASSERT_EQ(0, domains_open(is_model(self->fd)));
	self->a = domain_create(DOMAIN_HAP, MANY);
	self->b = domain_create(DOMAIN_HAP, MANY);
	ASSERT_NE(NO_DOMAIN, self->a);
	ASSERT_NE(NO_DOMAIN, self->b);
	ASSERT_EQ(0, domain_fill(self->a, TAG_A, 0, MANY));
	ASSERT_EQ(0, domain_fill(self->b, TAG_B, 0, MANY));

	ASSERT_EQ(0, load_backwards(self->fd, self->a, self->b, MANY));
}

FIXTURE_TEARDOWN(many)
{
	close(self->fd);
	domain_destroy(self->a);
	domain_destroy(self->b);
	domains_close();
}

TEST_F_TIMEOUT(many, signals_end_a_commit_with_progress, 120)
{
	static __s32 status[MANY];
	struct vmbeam_commit commit = { .cursor = 0 };
	struct vmbeam_rollback rollback;
	unsigned int calls = 0, i;
	__u64 cursor = 0;

	ASSERT_EQ(0, domains_slow(1));
	interrupt_every(1000);
	while (cursor < MANY) {
		memset(status, 0xcc, sizeof(status));
		/* Never EINTR: every call gets somewhere. */
		ASSERT_EQ(0, do_commit(self->fd, cursor, 0, status, &commit));
		calls++;
		ASSERT_LT(cursor, commit.cursor);
		ASSERT_EQ(commit.cursor - cursor, commit.swapped);
		for (i = 0; i < MANY - cursor; i++)
			ASSERT_EQ(i < commit.swapped ? 0 : LEFT_ALONE, status[i]);
		cursor = commit.cursor;
	}
	/* The model takes its time; a hypervisor may have done all before a signal. */
	if (is_model(self->fd))
		EXPECT_LT(1, calls);
	EXPECT_EQ(VMBEAM_STATE_COMMITTED, get_status(self->fd).state);
	interrupt_every(0);
	EXPECT_AWAY(0, MANY);

	/* And the way back. */
	interrupt_every(1000);
	while (cursor) {
		ASSERT_EQ(0, do_rollback(self->fd, cursor, &rollback));
		ASSERT_GT(cursor, rollback.cursor);
		cursor = rollback.cursor;
	}
	interrupt_every(0);
	ASSERT_EQ(0, domains_slow(0));
	EXPECT_HOME(0, MANY);
}

/* More pairs in one run than go into one hypercall. */
TEST_F(many, one_run)
{
	static __s32 status[MANY];
	struct vmbeam_check check;
	void *held = domain_hold(self->b, MANY - 2);
	unsigned int i;

	ASSERT_NE(NULL, held);
	close(self->fd);
	self->fd = open(DEVICE, O_RDWR | O_CLOEXEC);
	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 0, 0, MANY));
	memset(status, 0xcc, sizeof(status));
	ASSERT_EQ(0, do_check(self->fd, 0, 0, status, &check));
	EXPECT_EQ(MANY, check.done);
	EXPECT_EQ(1, check.refused);
	for (i = 0; i < MANY; i++)
		ASSERT_EQ(i == MANY - 2 ? -EBUSY : 0, status[i]);
	domain_release(held);
	ASSERT_EQ(0, do_commit(self->fd, 0, 0, NULL, NULL));
	EXPECT_AWAY(0, MANY);
	ASSERT_EQ(0, do_rollback(self->fd, MANY, NULL));
	EXPECT_HOME(0, MANY);
}

/* An array that is too short, by more than is looked at before anything moves. */
TEST_F(many, array_ends_beyond_the_first_batch)
{
	const size_t elements = 4096, batch = 512, size = elements * sizeof(__s32);
	char *array = mmap(NULL, size + 4096, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	struct vmbeam_commit commit;

	ASSERT_NE(MAP_FAILED, array);
	ASSERT_EQ(0, mprotect(array + size, 4096, PROT_NONE));
	EXPECT_FAIL(EFAULT, do_commit(self->fd, 0, 0, (void *)array, &commit));
	/* Its statuses are lost; that it was swapped is not. */
	EXPECT_EQ(elements + batch, commit.cursor);
	EXPECT_EQ(elements + batch, commit.swapped);
	EXPECT_EQ(elements + batch, get_status(self->fd).swapped);
	EXPECT_AWAY(MANY - commit.cursor, commit.cursor);
	EXPECT_HOME(0, MANY - commit.cursor);
	munmap(array, size + 4096);
}

TEST_F_TIMEOUT(many, killed_in_a_commit, 120)
{
	struct vmbeam_status state;
	int wstatus;
	pid_t pid;

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		for (;;)
			do_commit(self->fd, get_status(self->fd).cursor, 0, NULL, NULL);
	}
	/* As soon as it has begun. */
	do
		state = get_status(self->fd);
	while (state.cursor == 0);
	kill(pid, SIGKILL);
	ASSERT_EQ(pid, waitpid(pid, &wstatus, 0));
	EXPECT_TRUE(WIFSIGNALED(wstatus));

	/* The file is still open here, and knows exactly how far it came. */
	state = get_status(self->fd);
	EXPECT_EQ(state.cursor, state.swapped);
	EXPECT_HOME(0, MANY - state.cursor);
	EXPECT_AWAY(MANY - state.cursor, state.cursor);
	ASSERT_EQ(0, do_rollback(self->fd, state.cursor, NULL));
	EXPECT_HOME(0, MANY);
}

/* ---- The last reference goes ---- */

FIXTURE(half) {
	int fd;
	__u32 a, b;
};

FIXTURE_SETUP(half)
{
	self->a = NO_DOMAIN;
	self->b = NO_DOMAIN;
	self->fd = open(DEVICE, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->fd);
	if (!has_swap(self->fd))
		SKIP(return, "this hypervisor has no swap of frames");
	ASSERT_EQ(0, domains_open(is_model(self->fd)));
	ASSERT_EQ(0, count_records(NULL));
	self->a = domain_create(DOMAIN_HAP, FRAMES);
	self->b = domain_create(DOMAIN_HAP, FRAMES);
	ASSERT_NE(NO_DOMAIN, self->a);
	ASSERT_NE(NO_DOMAIN, self->b);
	ASSERT_EQ(0, domain_fill(self->a, TAG_A, 0, FRAMES));
	ASSERT_EQ(0, domain_fill(self->b, TAG_B, 0, FRAMES));
	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 0, 0, FRAMES));
}

FIXTURE_TEARDOWN(half)
{
	close(self->fd);
	forget_records();
	domain_destroy(self->a);
	domain_destroy(self->b);
	domains_close();
}

TEST_F(half, closed_half_way)
{
	ASSERT_EQ(0, do_commit(self->fd, 0, FRAMES / 2, NULL, NULL));
	EXPECT_AWAY(0, FRAMES / 2);
	REOPEN();
	/* Already when close() returns. */
	EXPECT_HOME(0, FRAMES);
	EXPECT_EQ(0, count_records(NULL));
}

TEST_F(half, closed_when_committed)
{
	ASSERT_EQ(0, do_commit(self->fd, 0, 0, NULL, NULL));
	REOPEN();
	EXPECT_AWAY(0, FRAMES);
	EXPECT_EQ(0, count_records(NULL));
}

TEST_F(half, closed_in_a_rollback)
{
	void *held;

	ASSERT_EQ(0, do_commit(self->fd, 0, 0, NULL, NULL));
	held = domain_hold(self->a, 9);
	ASSERT_NE(NULL, held);
	ASSERT_EQ(0, do_rollback(self->fd, FRAMES, NULL));
	EXPECT_EQ(VMBEAM_STATE_ROLLING_BACK, get_status(self->fd).state);
	domain_release(held);
	REOPEN();
	EXPECT_HOME(0, FRAMES);
	EXPECT_EQ(0, count_records(NULL));
}

TEST_F(half, one_of_two_references)
{
	int other;

	ASSERT_EQ(0, do_commit(self->fd, 0, FRAMES / 2, NULL, NULL));
	other = dup(self->fd);
	ASSERT_LE(0, other);
	close(self->fd);
	EXPECT_AWAY(0, FRAMES / 2);
	self->fd = other;
	REOPEN();
	EXPECT_HOME(0, FRAMES);
}

TEST_F(half, a_child_inherits_and_rolls_back)
{
	int wstatus;
	pid_t pid;

	ASSERT_EQ(0, do_commit(self->fd, 0, FRAMES / 2, NULL, NULL));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(do_rollback(self->fd, FRAMES / 2, NULL) ? 1 : 0);
	ASSERT_EQ(pid, waitpid(pid, &wstatus, 0));
	EXPECT_TRUE(WIFEXITED(wstatus) && !WEXITSTATUS(wstatus));
	EXPECT_EQ(VMBEAM_STATE_ROLLED_BACK, get_status(self->fd).state);
	EXPECT_HOME(0, FRAMES);
}

TEST_F(half, record_and_adopt)
{
	struct vmbeam_record record;
	struct vmbeam_status status;
	char line[200];
	void *held;
	int before;

	snprintf(line, sizeof(line), ": 8 pairs of domains %u and %u remain swapped (error %d)\n",
		 self->a, self->b, -EBUSY);
	before = logged(line);
	ASSERT_EQ(0, do_commit(self->fd, 0, FRAMES / 2, NULL, NULL));
	held = domain_hold(self->b, 7);
	ASSERT_NE(NULL, held);
	REOPEN();
	EXPECT_HOME(8, FRAMES - 8);
	ASSERT_EQ(1, count_records(&record));
	EXPECT_NE(0, record.id);
	EXPECT_EQ(self->a, record.domid_a);
	EXPECT_EQ(self->b, record.domid_b);
	EXPECT_EQ(VMBEAM_STATE_ROLLING_BACK, record.state);
	EXPECT_EQ(-EBUSY, record.error);
	EXPECT_EQ(1, record.runs);
	EXPECT_EQ(FRAMES, record.pairs);
	EXPECT_EQ(8, record.cursor);
	EXPECT_EQ(8, record.swapped);
	EXPECT_EQ(0, record.refused);
	EXPECT_EQ(before + 1, logged(line));

	/* As long as it is kept the module cannot go, even with no file open. */
	close(self->fd);
	EXPECT_EQ(-1, syscall(SYS_delete_module, "vmbeam", O_NONBLOCK));
	EXPECT_TRUE(errno == EBUSY || errno == EWOULDBLOCK);
	self->fd = open(DEVICE, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->fd);

	EXPECT_FAIL(ENOENT, do_adopt(self->fd, record.id + 1));
	EXPECT_FAIL(ENOENT, do_adopt(self->fd, 0));
	ASSERT_EQ(0, do_adopt(self->fd, record.id));
	EXPECT_EQ(0, count_records(NULL));
	status = get_status(self->fd);
	EXPECT_EQ(VMBEAM_STATE_ROLLING_BACK, status.state);
	EXPECT_EQ(self->a, status.domid_a);
	EXPECT_EQ(8, status.cursor);
	/* Bound now, to this pair. */
	EXPECT_FAIL(EBADFD, do_bind(self->fd, self->a, self->b));
	EXPECT_FAIL(EBADFD, do_adopt(self->fd, record.id));
	EXPECT_FAIL(EBUSY, do_rollback(self->fd, 8, NULL));

	/* Closed again, kept again, under another number. */
	REOPEN();
	ASSERT_EQ(1, count_records(&record));
	domain_release(held);
	ASSERT_EQ(0, do_adopt(self->fd, record.id));
	ASSERT_EQ(0, do_rollback(self->fd, 8, NULL));
	EXPECT_HOME(0, FRAMES);
}

/* By their numbers, wherever the driver has them. */
TEST_F(half, records_in_order)
{
	__u32 c = domain_create(DOMAIN_HAP, FRAMES), d = domain_create(DOMAIN_HAP, FRAMES);
	struct vmbeam_record first, second, none;
	int fd = open(DEVICE, O_RDWR | O_CLOEXEC);
	void *held[2];

	ASSERT_NE(NO_DOMAIN, d);
	ASSERT_EQ(0, do_bind(fd, c, d));
	ASSERT_EQ(0, add_one(fd, 0, 0, 8));
	ASSERT_EQ(0, do_commit(fd, 0, 4, NULL, NULL));
	ASSERT_EQ(0, do_commit(self->fd, 0, 4, NULL, NULL));
	held[0] = domain_hold(c, 0);
	held[1] = domain_hold(self->a, 0);
	ASSERT_NE(NULL, held[0]);
	ASSERT_NE(NULL, held[1]);
	/* The one that was bound last is the first to be kept. */
	close(fd);
	REOPEN();
	ASSERT_EQ(0, do_record(self->fd, 0, &first));
	EXPECT_EQ(c, first.domid_a);
	ASSERT_EQ(0, do_record(self->fd, first.id, &second));
	EXPECT_LT(first.id, second.id);
	EXPECT_EQ(self->a, second.domid_a);
	EXPECT_FAIL(ENOENT, do_record(self->fd, second.id, &none));
	domain_release(held[0]);
	domain_release(held[1]);
	forget_records();
	domain_destroy(c);
	domain_destroy(d);
}

TEST_F(half, adopted_and_closed)
{
	struct vmbeam_record record;
	void *held;

	ASSERT_EQ(0, do_commit(self->fd, 0, FRAMES / 2, NULL, NULL));
	held = domain_hold(self->a, 0);
	ASSERT_NE(NULL, held);
	REOPEN();
	ASSERT_EQ(1, count_records(&record));
	domain_release(held);
	ASSERT_EQ(0, do_adopt(self->fd, record.id));
	REOPEN();
	EXPECT_HOME(0, FRAMES);
	EXPECT_EQ(0, count_records(NULL));
}

TEST_F(half, domain_dies_and_abandon)
{
	struct vmbeam_record record;

	ASSERT_EQ(0, do_commit(self->fd, 0, FRAMES / 2, NULL, NULL));
	domain_destroy(self->b);
	self->b = NO_DOMAIN;
	REOPEN();
	ASSERT_EQ(1, count_records(&record));
	EXPECT_EQ(-ESRCH, record.error);
	EXPECT_EQ(VMBEAM_STATE_COMMITTING, record.state);
	EXPECT_EQ(FRAMES / 2, record.cursor);
	EXPECT_EQ(FRAMES / 2, record.swapped);
	ASSERT_EQ(0, do_adopt(self->fd, record.id));
	EXPECT_EQ(0, do_abandon(self->fd, FRAMES / 2, NULL));
	REOPEN();
	EXPECT_FAIL(ENOENT, do_adopt(self->fd, record.id));
	EXPECT_EQ(0, count_records(NULL));
}

TEST_F(half, abandon)
{
	struct vmbeam_record record;
	__u64 cursor;

	ASSERT_EQ(0, do_commit(self->fd, 0, FRAMES / 2, NULL, NULL));
	EXPECT_FAIL(ESTALE, do_abandon(self->fd, 0, &cursor));
	EXPECT_EQ(FRAMES / 2, cursor);
	EXPECT_EQ(VMBEAM_STATE_COMMITTING, get_status(self->fd).state);
	ASSERT_EQ(0, do_abandon(self->fd, FRAMES / 2, &cursor));
	EXPECT_EQ(FRAMES / 2, cursor);
	EXPECT_EQ(VMBEAM_STATE_ABANDONED, get_status(self->fd).state);
	EXPECT_EQ(0, get_status(self->fd).swapped);
	/* For good: whoever was handed the file for two domains gets no others by this. */
	EXPECT_FAIL(EBADFD, do_bind(self->fd, self->a, self->b));
	EXPECT_FAIL(EBADFD, do_record(self->fd, 0, &record));
	EXPECT_FAIL(EBADFD, do_adopt(self->fd, 1));
	EXPECT_FAIL(EBADFD, add_one(self->fd, 0, 0, 1));
	EXPECT_FAIL(EBADFD, do_check(self->fd, 0, 0, NULL, NULL));
	EXPECT_FAIL(EBADFD, do_commit(self->fd, FRAMES / 2, 0, NULL, NULL));
	EXPECT_FAIL(EBADFD, do_rollback(self->fd, FRAMES / 2, NULL));
	EXPECT_FAIL(EBADFD, do_abandon(self->fd, FRAMES / 2, NULL));
	EXPECT_FAIL(ENOENT, do_cancel(self->fd));
	REOPEN();
	EXPECT_AWAY(0, FRAMES / 2);
	EXPECT_HOME(FRAMES / 2, FRAMES / 2);
	EXPECT_EQ(0, count_records(NULL));
	/* Nothing is in the way of another session. */
	EXPECT_EQ(0, do_bind(self->fd, self->b, self->a));
}

struct binder {
	int fd;
	__u32 a, b;
};

static void *bind_and_load(void *arg)
{
	struct binder *binder = arg;

	return do_bind(binder->fd, binder->a, binder->b) ||
	       add_one(binder->fd, 0, 0, FRAMES) ? binder : NULL;
}

/* A file that was handed to somebody for two domains tells nothing of others. */
TEST_F(half, records_are_not_for_a_bound_file)
{
	struct vmbeam_record record, seen;
	__u32 c = domain_create(DOMAIN_HAP, FRAMES), d = domain_create(DOMAIN_HAP, FRAMES);
	struct binder binder = { .a = self->a, .b = self->b };
	int fd = open(DEVICE, O_RDWR | O_CLOEXEC);
	void *held, *failed;
	struct timespec started, now;
	pthread_t thread;

	ASSERT_NE(NO_DOMAIN, d);
	ASSERT_EQ(0, clock_gettime(CLOCK_REALTIME, &started));
	ASSERT_EQ(0, do_bind(fd, c, d));
	/* The record names the process, whichever of its threads had bound the session. */
	REOPEN();
	binder.fd = self->fd;
	ASSERT_EQ(0, pthread_create(&thread, NULL, bind_and_load, &binder));
	ASSERT_EQ(0, pthread_join(thread, &failed));
	ASSERT_EQ(NULL, failed);
	ASSERT_EQ(0, do_commit(self->fd, 0, FRAMES / 2, NULL, NULL));
	held = domain_hold(self->b, 7);
	ASSERT_NE(NULL, held);
	REOPEN();
	ASSERT_EQ(1, count_records(&record));
	EXPECT_EQ(getpid(), (pid_t)record.pid);
	/* Not time(): that one is the last tick's, which may lie behind the driver's clock. */
	ASSERT_EQ(0, clock_gettime(CLOCK_REALTIME, &now));
	EXPECT_LE(started.tv_sec, (time_t)record.time);
	EXPECT_GE(now.tv_sec, (time_t)record.time);
	EXPECT_EQ(0, record.reserved);
	EXPECT_FAIL(EBADFD, do_record(fd, 0, &seen));
	EXPECT_FAIL(EBADFD, do_adopt(fd, record.id));
	EXPECT_EQ(1, count_records(NULL));
	EXPECT_FAIL(ENOENT, do_record(self->fd, record.id, &seen));
	close(fd);
	domain_release(held);
	domain_destroy(c);
	domain_destroy(d);
}

/* Two sessions that swap the same frames would undo each other. */
TEST_F(half, one_session_of_a_domain_at_a_time)
{
	__u32 c = domain_create(DOMAIN_HAP, FRAMES), d = domain_create(DOMAIN_HAP, FRAMES);
	int early = open(DEVICE, O_RDWR | O_CLOEXEC), late = open(DEVICE, O_RDWR | O_CLOEXEC);
	int other = open(DEVICE, O_RDWR | O_CLOEXEC);
	struct vmbeam_record record;
	void *held;

	ASSERT_NE(NO_DOMAIN, c);
	ASSERT_NE(NO_DOMAIN, d);
	ASSERT_EQ(0, do_bind(early, self->a, self->b));
	ASSERT_EQ(0, add_one(early, 0, 0, 8));
	ASSERT_EQ(0, do_commit(self->fd, 0, 8, NULL, NULL));
	EXPECT_FAIL(EBUSY, do_commit(early, 0, 0, NULL, NULL));
	EXPECT_EQ(VMBEAM_STATE_LOADED, get_status(early).state);
	EXPECT_FAIL(EBUSY, do_bind(late, self->b, self->a));
	EXPECT_FAIL(EBUSY, do_bind(late, c, self->a));
	/* Two others have nothing to do with it. */
	EXPECT_EQ(0, do_bind(other, c, d));
	EXPECT_EQ(0, add_one(other, 0, 0, 1));
	EXPECT_EQ(0, do_commit(other, 0, 0, NULL, NULL));
	EXPECT_AWAY(0, 8);
	EXPECT_HOME(8, FRAMES - 8);

	/* As long as there is a record, too. */
	held = domain_hold(self->a, 0);
	ASSERT_NE(NULL, held);
	REOPEN();
	ASSERT_EQ(1, count_records(&record));
	EXPECT_FAIL(EBUSY, do_bind(late, self->a, self->b));
	EXPECT_FAIL(EBUSY, do_commit(early, 0, 0, NULL, NULL));
	domain_release(held);
	ASSERT_EQ(0, do_adopt(self->fd, record.id));
	ASSERT_EQ(0, do_rollback(self->fd, record.cursor, NULL));
	/* All is back: anybody may. */
	EXPECT_EQ(0, do_bind(late, self->a, self->b));
	EXPECT_EQ(0, do_commit(early, 0, 0, NULL, NULL));
	EXPECT_AWAY(0, 8);
	close(early);
	close(late);
	close(other);
	domain_destroy(c);
	domain_destroy(d);
}

/* What can never be put back is in nobody's way. */
TEST_F(half, record_of_a_dead_domain)
{
	__u32 c = domain_create(DOMAIN_HAP, FRAMES);
	int other = open(DEVICE, O_RDWR | O_CLOEXEC);
	struct vmbeam_record record;

	ASSERT_NE(NO_DOMAIN, c);
	ASSERT_EQ(0, do_commit(self->fd, 0, 8, NULL, NULL));
	domain_destroy(self->b);
	self->b = c;
	REOPEN();
	ASSERT_EQ(1, count_records(&record));
	EXPECT_EQ(0, do_bind(self->fd, self->a, c));
	ASSERT_EQ(0, add_one(self->fd, 16, 16, 8));
	ASSERT_EQ(0, do_commit(self->fd, 0, 4, NULL, NULL));
	/* Nor when somebody looks into it while others move. */
	ASSERT_EQ(0, do_adopt(other, record.id));
	EXPECT_FAIL(ESRCH, do_rollback(other, 8, NULL));
	EXPECT_EQ(0, do_commit(self->fd, 4, 0, NULL, NULL));
	close(other);
}

/* The domain goes when there is a record already. */
TEST_F(half, record_of_a_domain_that_dies)
{
	__u32 c = domain_create(DOMAIN_HAP, FRAMES);
	int early = open(DEVICE, O_RDWR | O_CLOEXEC);
	void *held;

	ASSERT_NE(NO_DOMAIN, c);
	ASSERT_EQ(0, do_bind(early, self->a, c));
	ASSERT_EQ(0, add_one(early, 16, 16, 8));
	ASSERT_EQ(0, do_commit(self->fd, 0, 8, NULL, NULL));
	held = domain_hold(self->b, 0);
	ASSERT_NE(NULL, held);
	REOPEN();
	ASSERT_EQ(1, count_records(NULL));
	EXPECT_FAIL(EBUSY, do_bind(self->fd, self->a, c));
	EXPECT_FAIL(EBUSY, do_commit(early, 0, 0, NULL, NULL));
	domain_release(held);
	domain_destroy(self->b);
	self->b = c;
	EXPECT_EQ(0, do_bind(self->fd, self->a, c));
	EXPECT_EQ(0, do_commit(early, 0, 0, NULL, NULL));
	close(early);
}

/* Of two records that share a domain one is of a dead one, and the other in the way still. */
TEST_F(half, record_beside_one_of_a_dead_domain)
{
	__u32 c = domain_create(DOMAIN_HAP, FRAMES), d = domain_create(DOMAIN_HAP, FRAMES);
	int other = open(DEVICE, O_RDWR | O_CLOEXEC);
	struct vmbeam_record record = { .id = 0 };
	void *held;

	ASSERT_NE(NO_DOMAIN, c);
	ASSERT_NE(NO_DOMAIN, d);
	ASSERT_EQ(0, do_commit(self->fd, 0, 8, NULL, NULL));
	domain_destroy(self->b);
	self->b = d;
	REOPEN();
	ASSERT_EQ(1, count_records(&record));
	ASSERT_EQ(0, do_bind(other, self->a, c));
	ASSERT_EQ(0, add_one(other, 16, 16, 8));
	ASSERT_EQ(0, do_commit(other, 0, 4, NULL, NULL));
	held = domain_hold(c, 16);
	ASSERT_NE(NULL, held);
	close(other);
	ASSERT_EQ(2, count_records(NULL));
	/* Somebody looks into the first one: it has pairs swapped, and is met first. */
	ASSERT_EQ(0, do_adopt(self->fd, record.id));
	EXPECT_FAIL(ESRCH, do_rollback(self->fd, 8, NULL));
	other = open(DEVICE, O_RDWR | O_CLOEXEC);
	EXPECT_FAIL(EBUSY, do_bind(other, self->a, d));
	EXPECT_EQ(0, do_abandon(self->fd, 8, NULL));
	EXPECT_FAIL(EBUSY, do_bind(other, self->a, d));
	domain_release(held);
	forget_records();
	EXPECT_EQ(0, do_bind(other, self->a, d));
	close(other);
	domain_destroy(c);
}

TEST_F(half, as_many_as_there_can_be)
{
	int fds[256], i, last;

	/* One is bound already. */
	for (i = 0; i < 255; i++) {
		fds[i] = open(DEVICE, O_RDWR | O_CLOEXEC);
		ASSERT_LE(0, fds[i]);
		ASSERT_EQ(0, do_bind(fds[i], self->a, self->b));
	}
	last = open(DEVICE, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, last);
	EXPECT_FAIL(ENOSPC, do_bind(last, self->a, self->b));
	close(fds[0]);
	EXPECT_EQ(0, do_bind(last, self->a, self->b));
	for (i = 1; i < 255; i++)
		close(fds[i]);
	close(last);
}

TEST_F(half, nothing_to_cancel)
{
	EXPECT_FAIL(ENOENT, do_cancel(self->fd));
	ASSERT_EQ(0, do_commit(self->fd, 0, 1, NULL, NULL));
	EXPECT_FAIL(ENOENT, do_cancel(self->fd));
}

TEST_F(half, fdinfo)
{
	char domains[64];

	ASSERT_EQ(0, do_commit(self->fd, 0, 10, NULL, NULL));
	snprintf(domains, sizeof(domains), "domains:\t%u %u", self->a, self->b);
	EXPECT_TRUE(fdinfo_has(self->fd, domains));
	EXPECT_TRUE(fdinfo_has(self->fd, "state:\tcommitting"));
	EXPECT_TRUE(fdinfo_has(self->fd, "activity:\tnone"));
	EXPECT_TRUE(fdinfo_has(self->fd, "runs:\t1"));
	EXPECT_TRUE(fdinfo_has(self->fd, "pairs:\t64"));
	EXPECT_TRUE(fdinfo_has(self->fd, "cursor:\t10"));
	EXPECT_TRUE(fdinfo_has(self->fd, "swapped:\t10"));
	EXPECT_TRUE(fdinfo_has(self->fd, "refused:\t0"));
	EXPECT_TRUE(fdinfo_has(self->fd, "hypercalls:\t1"));
	EXPECT_TRUE(fdinfo_has(self->fd, "tlb-flushes:\t1"));
	EXPECT_TRUE(fdinfo_has(self->fd, "batches:\t1"));
	EXPECT_TRUE(fdinfo_has(self->fd, "p2m-writes:\t40"));
	EXPECT_TRUE(fdinfo_has(self->fd, "superpages:\t0"));
	EXPECT_TRUE(fdinfo_has(self->fd, "splits:\t0"));
	EXPECT_TRUE(fdinfo_has(self->fd, "merges:\t0"));
	EXPECT_FALSE(fdinfo_has(self->fd, "merges:\t1"));
}

/* ---- A signal before the first pair ---- */

/*
 * Has a request's structure appear only when the kernel reads it, and sends a
 * signal to the caller before it does. So the signal comes when the ioctl has
 * begun and has done nothing yet.
 */
struct late {
	pthread_t thread, caller;
	int uffd;
	void *page, *contents;
};

static void *arrive_late(void *arg)
{
	struct late *late = arg;
	struct uffd_msg msg;
	struct uffdio_copy copy = {
		.dst = PTR(late->page), .src = PTR(late->contents), .len = 4096,
	};

	if (read(late->uffd, &msg, sizeof(msg)) == sizeof(msg)) {
		pthread_kill(late->caller, SIGUSR1);
		ioctl(late->uffd, UFFDIO_COPY, &copy);
	}
	return NULL;
}

/* Issue an ioctl that finds a signal pending. As ioctl(). */
static int interrupted(int fd, unsigned int cmd, void *arg, size_t size)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register where = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct late late = { .caller = pthread_self() };
	struct sigaction action = { .sa_handler = nothing };
	int ret = -1;

	late.page = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	late.contents = calloc(1, 4096);
	late.uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	where.range.start = PTR(late.page);
	where.range.len = 4096;
	memcpy(late.contents, arg, size);
	sigaction(SIGUSR1, &action, NULL);
	if (late.page != MAP_FAILED && late.uffd >= 0 &&
	    !ioctl(late.uffd, UFFDIO_API, &api) &&
	    !ioctl(late.uffd, UFFDIO_REGISTER, &where) &&
	    !pthread_create(&late.thread, NULL, arrive_late, &late)) {
		ret = ioctl(fd, cmd, late.page);
		pthread_join(late.thread, NULL);
		memcpy(arg, late.page, size);
	}
	close(late.uffd);
	free(late.contents);
	munmap(late.page, 4096);
	return ret;
}

/* A signal that is there already ends a call after its first hypercall, not before it. */
TEST_F(many, signal_before_the_first_pair)
{
	struct vmbeam_rollback rollback;
	struct vmbeam_commit commit;
	struct vmbeam_check check;
	__u64 one_call;

	poison(&check, sizeof(check));
	check.first = 0;
	check.nr = 0;
	check.status = 0;
	check.moves_before = 0;
	poison(&commit, sizeof(commit));
	commit.expected = 0;
	commit.nr = 0;
	commit.status = 0;
	poison(&rollback, sizeof(rollback));
	rollback.expected = MANY;
	ASSERT_EQ(0, interrupted(self->fd, VMBEAM_IOCTL_CHECK, &check, sizeof(check)));
	one_call = check.done;
	EXPECT_LT(0, one_call);
	EXPECT_GT(MANY, one_call);
	ASSERT_EQ(0, interrupted(self->fd, VMBEAM_IOCTL_COMMIT, &commit, sizeof(commit)));
	EXPECT_EQ(one_call, commit.cursor);
	EXPECT_EQ(one_call, commit.swapped);
	EXPECT_TRUE(fdinfo_has(self->fd, "hypercalls:\t1"));
	EXPECT_EQ(VMBEAM_STATE_COMMITTING, get_status(self->fd).state);
	ASSERT_EQ(0, do_commit(self->fd, one_call, 0, NULL, NULL));
	ASSERT_EQ(0, interrupted(self->fd, VMBEAM_IOCTL_ROLLBACK, &rollback, sizeof(rollback)));
	EXPECT_EQ(MANY - one_call, rollback.cursor);
	EXPECT_EQ(one_call, rollback.restored);
	ASSERT_EQ(0, do_rollback(self->fd, rollback.cursor, NULL));
	EXPECT_HOME(0, MANY);
}

/* ---- Trace events ---- */

#define TRACING "/sys/kernel/tracing/"

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_TRUNC);
	int ret = -1;

	if (fd >= 0) {
		ret = write(fd, text, strlen(text)) < 0 ? -1 : 0;
		close(fd);
	}
	return ret;
}

TEST_F(half, trace_events)
{
	static char text[1 << 16];
	struct vmbeam_record record;
	char line[200];
	FILE *file;
	size_t len;
	void *held;

	/* Fails if it is mounted already. */
	mount("tracefs", TRACING, "tracefs", 0, NULL);
	ASSERT_EQ(0, write_file(TRACING "trace", ""));
	ASSERT_EQ(0, write_file(TRACING "events/vmbeam/enable", "1"));
	held = domain_hold(self->a, 3);
	ASSERT_NE(NULL, held);
	EXPECT_EQ(0, do_commit(self->fd, 0, 10, NULL, NULL));
	EXPECT_EQ(0, do_commit(self->fd, 10, 2, NULL, NULL));
	EXPECT_EQ(0, do_check(self->fd, 20, 7, NULL, NULL));
	domain_release(held);
	held = domain_hold(self->b, 5);
	ASSERT_NE(NULL, held);
	REOPEN();
	ASSERT_EQ(1, count_records(&record));
	ASSERT_EQ(0, do_adopt(self->fd, record.id));
	domain_destroy(self->b);
	EXPECT_FAIL(ESRCH, do_rollback(self->fd, record.cursor, NULL));
	EXPECT_EQ(0, write_file(TRACING "events/vmbeam/enable", "0"));
	domain_release(held);

	file = fopen(TRACING "trace", "r");
	ASSERT_NE(NULL, file);
	len = fread(text, 1, sizeof(text) - 1, file);
	fclose(file);
	text[len] = '\0';
#define EXPECT_TRACED(event, format, ...) do {					\
	snprintf(line, sizeof(line), event "domid_a=%u domid_b=%u " format,	\
		 self->a, self->b, ##__VA_ARGS__);				\
	EXPECT_NE(NULL, strstr(text, line)) {					\
		TH_LOG("not traced: %s", line);					\
	}									\
} while (0)
	EXPECT_TRACED("vmbeam_batch_begin: ", "op=swap cursor=0 runs=1 pairs=10\n");
	EXPECT_TRACED("vmbeam_batch_end: ", "op=swap cursor=0 done=10 tlb_flushes=1 ret=0\n");
	EXPECT_TRACED("vmbeam_batch_begin: ", "op=swap cursor=10 runs=1 pairs=2\n");
	EXPECT_TRACED("vmbeam_batch_end: ", "op=swap cursor=10 done=2 tlb_flushes=1 ret=0\n");
	EXPECT_TRACED("vmbeam_batch_begin: ", "op=check cursor=20 runs=1 pairs=7\n");
	EXPECT_TRACED("vmbeam_batch_end: ", "op=check cursor=20 done=7 tlb_flushes=0 ret=0\n");
	EXPECT_TRACED("vmbeam_refused: ", "op=swap gfn_a=0x3 gfn_b=0x3 status=%d\n",
		      -EBUSY);
	EXPECT_TRACED("vmbeam_refused: ", "op=check gfn_a=0x5 gfn_b=0x5 status=%d\n",
		      -EBUSY);
	EXPECT_TRACED(" ", "swapped=5 error=%d\n", -EBUSY);
	EXPECT_TRACED("vmbeam_batch_end: ", "op=check cursor=6 done=0 tlb_flushes=0 ret=%d\n",
		      -ESRCH);
	self->b = NO_DOMAIN;
}

TEST_HARNESS_MAIN
