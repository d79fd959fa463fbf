/* The smallest guest: PID 1 without a C library, told by its arguments what to do, in their order.
 *
 * The kernel passes whatever follows `--` on its command line to init. Built by the tests with the C compiler
 * that links Rust programs anyway: `cc -nostdlib -static -ffreestanding -O1`. */

static long call(long n, long a, long b, long c, long d, long e)
{
	long ret;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	__asm__ volatile("syscall"
			 : "=a"(ret)
			 : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return ret;
}

enum { READ = 0, WRITE = 1, OPEN = 2, CLOSE = 3, PAUSE = 34, EXIT = 60, MKDIR = 83, MOUNT = 165, REBOOT = 169,
       FINIT_MODULE = 313 };

static long length(const char *s)
{
	long n = 0;
	while (s[n])
		n++;
	return n;
}

static int same(const char *a, const char *b)
{
	while (*a && *a == *b)
		a++, b++;
	return *a == *b;
}

static void say(const char *s) { call(WRITE, 1, (long)s, length(s), 0, 0); }

static void mount(const char *type, const char *at)
{
	call(MKDIR, (long)at, 0755, 0, 0, 0);
	call(MOUNT, (long)type, (long)at, (long)type, 0, 0);
}

static void write_to(const char *path, const char *text)
{
	long fd = call(OPEN, (long)path, 1, 0, 0, 0);
	call(WRITE, fd, (long)text, length(text), 0, 0);
	call(CLOSE, fd, 0, 0, 0, 0);
}

static long open_port(void)
{
	char path[] = "/dev/vport0p1";
	long fd = -1;
	mount("devtmpfs", "/dev");
	for (char bus = '0'; fd < 0; bus = bus == '9' ? '0' : bus + 1) {
		path[10] = bus;
		fd = call(OPEN, (long)path, 2, 0, 0, 0);
	}
	return fd;
}

/* Answers each byte that comes through the agent's port with the one before it; the first with '-'. */
static void remember(void)
{
	static char seen[2] = "--";
	long fd = open_port();
	for (;;)
		if (call(READ, fd, (long)&seen[1], 1, 0, 0) == 1) {
			call(WRITE, fd, (long)&seen[0], 1, 0, 0);
			seen[0] = seen[1];
		}
}

/* Returns every byte that comes through the agent's port, up to and including a 'q'. */
static void echo(void)
{
	char buffer[512];
	long fd = open_port();
	for (;;) {
		long n = call(READ, fd, (long)buffer, sizeof buffer, 0, 0);
		if (n <= 0)
			continue;
		call(WRITE, fd, (long)buffer, n, 0, 0);
		for (long i = 0; i < n; i++)
			if (buffer[i] == 'q')
				return;
	}
}

/* Prints the serial numbers of the first two disks. */
static void disks(void)
{
	char path[] = "/sys/block/vda/serial";
	char serial[64];
	mount("sysfs", "/sys");
	for (; path[13] <= 'b'; path[13]++) {
		long fd = call(OPEN, (long)path, 0, 0, 0, 0);
		long n = call(READ, fd, (long)serial, sizeof serial, 0, 0);
		say("DISK ");
		if (n > 0)
			call(WRITE, 1, (long)serial, n, 0, 0);
		say("\n");
	}
}

/* Loads what the archive holds, in its order, compressed or not. */
static void load_modules(void)
{
	for (char path[] = "/m0"; path[2] <= '9'; path[2]++) {
		long fd = call(OPEN, (long)path, 0, 0, 0, 0);
		if (fd < 0)
			return;
		if (call(FINIT_MODULE, fd, (long)"", 0, 0, 0) != 0)
			call(FINIT_MODULE, fd, (long)"", 4 /* decompress */, 0, 0);
		call(CLOSE, fd, 0, 0, 0, 0);
	}
}

static void act(const char *what)
{
	if (same(what, "ready"))
		say("INIT-READY\n");
	else if (same(what, "echo"))
		echo();
	else if (same(what, "remember"))
		remember();
	else if (same(what, "disks"))
		disks();
	else if (same(what, "crash")) {
		mount("proc", "/proc");
		write_to("/proc/sysrq-trigger", "c");
	} else if (same(what, "flood"))
		for (long i = 0; i < 20000; i++)
			say("the quick brown fox jumps over the lazy dog, again and again\n");
	else if (same(what, "hang"))
		for (;;)
			call(PAUSE, 0, 0, 0, 0, 0);
	else if (same(what, "die"))
		call(EXIT, 3, 0, 0, 0, 0);
	else if (same(what, "off"))
		call(REBOOT, 0xfee1dead, 672274793, 0x4321fedc, 0, 0);
}

__attribute__((used)) static void run(long *stack)
{
	long count = stack[0];
	char **arguments = (char **)(stack + 1);
	load_modules();
	for (long i = 1; i < count; i++)
		act(arguments[i]);
	for (;;)
		call(PAUSE, 0, 0, 0, 0, 0);
}

__asm__(".globl _start\n_start:\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall run\n");
