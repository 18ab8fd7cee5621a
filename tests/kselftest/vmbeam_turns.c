// SPDX-License-Identifier: GPL-2.0-only
/*
 * Selftest of /dev/vmbeam: threads that meet in it. Needs a debug driver (VMBEAM_DEBUG=y),
 * which makes hypercalls last.
 */

#include <sched.h>

#include "vmbeam_inject.h"

FIXTURE(turns) {
	int fd;
	__u32 a, b;
};

FIXTURE_SETUP(turns)
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
	self->a = domain_create(DOMAIN_HAP, FRAMES);
	self->b = domain_create(DOMAIN_HAP, FRAMES);
	ASSERT_NE(NO_DOMAIN, self->a);
	ASSERT_NE(NO_DOMAIN, self->b);
	ASSERT_EQ(0, domain_fill(self->a, TAG_A, 0, FRAMES));
	ASSERT_EQ(0, domain_fill(self->b, TAG_B, 0, FRAMES));
}

FIXTURE_TEARDOWN(turns)
{
	no_faults();
	close(self->fd);
	forget_records();
	domain_destroy(self->a);
	domain_destroy(self->b);
	domains_close();
	close(debug_device);
}

static void slow(unsigned int msec)
{
	inject(VMBEAM_DEBUG_SLOW, msec, 0, 0, 0);
}

struct worker {
	pthread_t thread;
	int fd, ret, error;
	__u32 a, b;
};

static void *work_bind(void *arg)
{
	struct worker *worker = arg;

	worker->ret = do_bind(worker->fd, worker->a, worker->b);
	return NULL;
}

static void *work_commit(void *arg)
{
	struct worker *worker = arg;

	worker->ret = do_commit(worker->fd, 0, 0, NULL, NULL);
	return NULL;
}

static void *work_rollback(void *arg)
{
	struct worker *worker = arg;

	worker->ret = do_rollback(worker->fd, get_status(worker->fd).cursor, NULL);
	return NULL;
}

static void wait_for_activity(int fd, unsigned int cmd)
{
	while (get_status(fd).activity != _IOC_NR(cmd))
		usleep(1000);
}

/* What has nothing that could be left in the middle cannot be cancelled. */
TEST_F(turns, cancel_bind)
{
	struct worker worker = { .fd = self->fd, .a = self->a, .b = self->b };

	slow(500);
	ASSERT_EQ(0, pthread_create(&worker.thread, NULL, work_bind, &worker));
	wait_for_activity(self->fd, VMBEAM_IOCTL_BIND);
	EXPECT_FAIL(ENOENT, do_cancel(self->fd));
	pthread_join(worker.thread, NULL);
	EXPECT_EQ(0, worker.ret);
	slow(0);
	/* And nothing of it is left for who comes next. */
	ASSERT_EQ(0, add_one(self->fd, 0, 0, 1));
	EXPECT_EQ(0, do_check(self->fd, 0, 0, NULL, NULL));
}

/* Others are kept out from the first hypercall on, and not only when it has ended. */
TEST_F(turns, others_during_the_first_batch)
{
	struct worker worker = { .fd = self->fd };
	int early = open(DEVICE, O_RDWR | O_CLOEXEC), late = open(DEVICE, O_RDWR | O_CLOEXEC);

	ASSERT_EQ(0, do_bind(early, self->b, self->a));
	ASSERT_EQ(0, add_one(early, 0, 0, 8));
	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 0, 0, 8));
	slow(1000);
	ASSERT_EQ(0, pthread_create(&worker.thread, NULL, work_commit, &worker));
	wait_for_activity(self->fd, VMBEAM_IOCTL_COMMIT);
	EXPECT_FAIL(EBUSY, do_commit(early, 0, 0, NULL, NULL));
	slow(0);
	EXPECT_FAIL(EBUSY, do_bind(late, self->a, self->b));
	pthread_join(worker.thread, NULL);
	EXPECT_EQ(0, worker.ret);
	EXPECT_AWAY(0, 8);
	close(early);
	close(late);
}

/* Pairs that are passed over need no hypercall, which is no reason not to look up. */
TEST_F_TIMEOUT(turns, refused_pairs_are_passed_over_in_parts, 120)
{
	const __u32 pairs = 1 << 19;
	struct worker worker = { .fd = self->fd };
	unsigned int between = 0;

	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 0, 0, 1));
	/* None of these frames is there. */
	ASSERT_EQ(0, add_one(self->fd, FRAMES, FRAMES, pairs));
	ASSERT_EQ(0, do_commit(self->fd, 0, 0, NULL, NULL));
	ASSERT_EQ(pairs, get_status(self->fd).refused);
	ASSERT_EQ(0, pthread_create(&worker.thread, NULL, work_rollback, &worker));
	for (;;) {
		struct vmbeam_status state = get_status(self->fd);

		between += state.cursor > 1 && state.cursor <= pairs;
		if (state.state == VMBEAM_STATE_ROLLED_BACK)
			break;
	}
	pthread_join(worker.thread, NULL);
	EXPECT_EQ(0, worker.ret);
	TH_LOG("%u times half way", between);
	EXPECT_LT(0, between);
	EXPECT_HOME(0, FRAMES);
}

/* Give a thread a priority above all of the others', and one processor for both. */
static int keep_to_one_processor(int policy)
{
	struct sched_param param = { .sched_priority = policy == SCHED_FIFO };
	cpu_set_t cpus;

	CPU_ZERO(&cpus);
	CPU_SET(0, &cpus);
	return sched_setaffinity(0, sizeof(cpus), &cpus) ||
	       sched_setscheduler(0, policy, &param);
}

struct waiter {
	pthread_t thread;
	int fd, ret, error;
	useconds_t later;
};

/* Take a turn, which does nothing. */
static void *take_turn(void *arg)
{
	struct waiter *waiter = arg;

	if (keep_to_one_processor(SCHED_OTHER))
		return NULL;
	while (!get_status(waiter->fd).activity)
		usleep(1000);
	usleep(waiter->later);
	waiter->ret = do_rollback(waiter->fd, UINT64_MAX, NULL);
	waiter->error = errno;
	return NULL;
}

/*
 * Two wait, and the first one is interrupted after it has been told that it is its turn, but
 * before it runs. The second one was told nothing: if the first one just went it would wait
 * for ever.
 */
TEST_F(turns, interrupted_when_it_was_its_turn)
{
	struct waiter waiters[2] = {
		{ .fd = self->fd }, { .fd = self->fd, .later = 300000 },
	};
	struct sigaction action = { .sa_handler = nothing };
	struct timespec limit;
	int i, joined;

	sigaction(SIGUSR1, &action, NULL);
	ASSERT_EQ(0, do_bind(self->fd, self->a, self->b));
	ASSERT_EQ(0, add_one(self->fd, 0, 0, 8));
	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, pthread_create(&waiters[i].thread, NULL, take_turn, &waiters[i]));
	slow(1500);
	ASSERT_EQ(0, keep_to_one_processor(SCHED_FIFO));
	EXPECT_EQ(0, do_commit(self->fd, 0, 0, NULL, NULL));
	/* Nobody else has run since it ended. */
	EXPECT_EQ(0, pthread_kill(waiters[0].thread, SIGUSR1));
	EXPECT_EQ(0, keep_to_one_processor(SCHED_OTHER));
	slow(0);
	clock_gettime(CLOCK_REALTIME, &limit);
	limit.tv_sec += 10;
	joined = pthread_timedjoin_np(waiters[1].thread, NULL, &limit);
	EXPECT_EQ(0, joined);
	if (joined) {
		/* Whoever takes a turn wakes it. */
		do_check(self->fd, 0, 0, NULL, NULL);
		pthread_join(waiters[1].thread, NULL);
	}
	pthread_join(waiters[0].thread, NULL);
	for (i = 0; i < 2; i++) {
		EXPECT_EQ(-1, waiters[i].ret);
		EXPECT_EQ(ESTALE, waiters[i].error);
	}
	EXPECT_AWAY(0, 8);
}

TEST_HARNESS_MAIN
