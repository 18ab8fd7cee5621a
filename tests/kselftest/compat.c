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

/* What the driver does not read or write as documented shows. */
static void poison(void *arg, __u32 size)
{
	__u32 *head = arg;

	memset(arg, 0xcc, size);
	head[0] = size;
	head[1] = 0;
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
	struct vmbeam_status arg;

	poison(&arg, sizeof(arg));
	CALL(VMBEAM_IOCTL_STATUS, arg, NULL);
}

static void commit(__u64 expected, __u64 nr)
{
	__s32 statuses[PAIRS];
	struct vmbeam_commit arg;

	memset(statuses, 0xcc, sizeof(statuses));
	poison(&arg, sizeof(arg));
	arg.expected = expected;
	arg.nr = nr;
	arg.status = PTR(statuses);
	CALL(VMBEAM_IOCTL_COMMIT, arg, &arg.status);
	print("statuses", 0, statuses, sizeof(statuses));
	status();
}

static void rollback(__u64 expected)
{
	struct vmbeam_rollback arg;

	poison(&arg, sizeof(arg));
	arg.expected = expected;
	CALL(VMBEAM_IOCTL_ROLLBACK, arg, NULL);
	status();
}

static void session(__u32 domid_a, __u32 domid_b)
{
	struct vmbeam_run runs[] = {
		{ 0, 20, 4, 0 }, { 4, 24, 4, 0 }, { 1000, 30, 1, 0 }, { 10, 31, 3, 0 },
	};
	struct vmbeam_run bad[] = { { 40, 40, 1, 0 }, { 1ULL << 52, 41, 1, 0 } };
	struct vmbeam_bind bind_arg;
	struct vmbeam_add add;
	__s32 statuses[PAIRS];
	struct vmbeam_check check;
	struct vmbeam_info info;
	int ret;

	poison(&info, sizeof(info));
	CALL(VMBEAM_IOCTL_INFO, info, NULL);
	status();
	poison(&bind_arg, sizeof(bind_arg));
	bind_arg.domid_a = domid_a;
	bind_arg.domid_b = domid_b;
	bind_arg.id_a = 0;
	bind_arg.id_b = 0;
	ret = ioctl(fd, VMBEAM_IOCTL_BIND, &bind_arg);
	/* Which domains they are is not the same in both runs. */
	print("VMBEAM_IOCTL_BIND", ret, &bind_arg, 8);
	poison(&add, sizeof(add));
	add.runs = PTR(runs);
	add.nr_runs = 4;
	CALL(VMBEAM_IOCTL_ADD, add, &add.runs);
	add.runs = PTR(bad);
	add.nr_runs = 2;
	CALL(VMBEAM_IOCTL_ADD, add, &add.runs);
	add.runs = PTR(runs);
	add.nr_runs = 1;
	CALL(VMBEAM_IOCTL_ADD, add, &add.runs);
	memset(statuses, 0xcc, sizeof(statuses));
	poison(&check, sizeof(check));
	check.first = 0;
	check.nr = 0;
	check.moves_before = 0;
	check.status = PTR(statuses);
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
