// SPDX-License-Identifier: GPL-2.0-only
/*
 * A session from the first call to the last, on two domains that are named as
 * arguments. It is built twice, for 64 and for 32 bits, and prints every byte
 * that the driver wrote, so that the two can be compared.
 */

#include "nolibc.h"

#include <linux/vmbeam.h>

#define PAIRS 12
#define PTR(p) ((__u64)(unsigned long)(p))

static int fd;

static void print(const char *name, int ret, const void *data, unsigned int size)
{
	const unsigned char *bytes = data;
	unsigned int i;

	printf("%s %d %d ", name, ret, ret ? errno : 0);
	for (i = 0; i < size; i++)
		printf("%x%x", bytes[i] >> 4, bytes[i] & 15);
	printf("\n");
}

/* What is printed depends on the answer only: an address is taken out before. */
static void call(const char *name, unsigned long number, void *arg,
		 unsigned int size, __u64 *address)
{
	int ret = ioctl(fd, number, arg);

	if (address)
		*address = 0;
	print(name, ret, arg, size);
}

#define CALL(number, arg, address) call(#number, number, &(arg), sizeof(arg), address)

static void status(void)
{
	struct vmbeam_status arg = { .size = sizeof(arg) };

	CALL(VMBEAM_IOCTL_STATUS, arg, NULL);
}

static void commit(__u64 expected, __u64 nr)
{
	__s32 statuses[PAIRS] = { 0 };
	struct vmbeam_commit arg = {
		.size = sizeof(arg), .expected = expected, .nr = nr, .status = PTR(statuses),
	};

	CALL(VMBEAM_IOCTL_COMMIT, arg, &arg.status);
	print("statuses", 0, statuses, sizeof(statuses));
	status();
}

static void rollback(__u64 expected)
{
	struct vmbeam_rollback arg = { .size = sizeof(arg), .expected = expected };

	CALL(VMBEAM_IOCTL_ROLLBACK, arg, NULL);
	status();
}

static void session(__u32 domid_a, __u32 domid_b)
{
	struct vmbeam_run runs[] = {
		{ 0, 20, 4, 0 }, { 4, 24, 4, 0 }, { 1000, 30, 1, 0 }, { 10, 31, 3, 0 },
	};
	struct vmbeam_run bad[] = { { 40, 40, 1, 0 }, { 1ULL << 52, 41, 1, 0 } };
	struct vmbeam_bind bind_arg = {
		.size = sizeof(bind_arg), .domid_a = domid_a, .domid_b = domid_b,
	};
	struct vmbeam_add add = { .size = sizeof(add), .runs = PTR(runs), .nr_runs = 4 };
	__s32 statuses[PAIRS] = { 0 };
	struct vmbeam_check check = { .size = sizeof(check), .status = PTR(statuses) };
	struct vmbeam_info info = { .size = sizeof(info) };
	int ret;

	CALL(VMBEAM_IOCTL_INFO, info, NULL);
	status();
	ret = ioctl(fd, VMBEAM_IOCTL_BIND, &bind_arg);
	/* Which domains they are is not the same in both runs. */
	print("VMBEAM_IOCTL_BIND", ret, &bind_arg, 8);
	CALL(VMBEAM_IOCTL_ADD, add, &add.runs);
	add.runs = PTR(bad);
	add.nr_runs = 2;
	CALL(VMBEAM_IOCTL_ADD, add, &add.runs);
	add.runs = PTR(runs);
	add.nr_runs = 1;
	CALL(VMBEAM_IOCTL_ADD, add, &add.runs);
	CALL(VMBEAM_IOCTL_CHECK, check, &check.status);
	print("statuses", 0, statuses, sizeof(statuses));
	commit(5, 0);
	commit(0, 5);
	commit(5, 0);
	commit(PAIRS, 0);
	rollback(3);
	rollback(PAIRS);
	rollback(0);
}

int main(int argc, char **argv)
{
	if (argc != 3)
		return 2;
	fd = open("/dev/vmbeam", O_RDWR);
	if (fd < 0)
		return 1;
	session(atoi(argv[1]), atoi(argv[2]));
	close(fd);
	return 0;
}
