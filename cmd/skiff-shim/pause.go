//go:build cgo

package main

// The first process of a shared PID namespace: it reaps orphans and sleeps. It
// runs before the Go runtime starts, so it costs next to nothing.
//
// Containers see it, and one with CAP_SYS_PTRACE may trace it and look through its
// /proc/1/root. So before any is started it leaves the host's file system for an
// empty one, its user and capabilities, and all system calls but those of its sleep.

/*
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__x86_64__)
#define SKIFF_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define SKIFF_ARCH AUDIT_ARCH_AARCH64
#elif defined(__arm__)
#define SKIFF_ARCH AUDIT_ARCH_ARM
#elif defined(__riscv)
#define SKIFF_ARCH AUDIT_ARCH_RISCV64
#endif

enum { skiff_told = 3, skiff_nobody = 65535 };

static void skiff_pause_end(int sig) { _exit(0); }

static void skiff_step(const char *what, long rc) {
	if (rc >= 0)
		return;
	dprintf(skiff_told, "%s: %s", what, strerror(errno));
	_exit(1);
}

#define ALLOW(nr) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

static int skiff_pause_filter(void) {
	struct sock_filter program[] = {
#ifdef SKIFF_ARCH
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SKIFF_ARCH, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
#endif
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
#ifdef SYS_pause
		ALLOW(SYS_pause),
#endif
#ifdef SYS_ppoll
		ALLOW(SYS_ppoll),
#endif
		ALLOW(SYS_rt_sigreturn),
		ALLOW(SYS_restart_syscall),
		ALLOW(SYS_close),
		ALLOW(SYS_write),
		ALLOW(SYS_exit_group),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
	};
	struct sock_fprog p = {sizeof(program) / sizeof(program[0]), program};
	return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p);
}

__attribute__((constructor(102))) static void skiff_pause(int argc, char **argv, char **envp) {
	if (argc != 2 || strcmp(argv[1], "pause") != 0)
		return;
	signal(SIGCHLD, SIG_IGN); // the kernel reaps
	signal(SIGINT, skiff_pause_end);
	signal(SIGTERM, skiff_pause_end);
	signal(SIGHUP, SIG_IGN);
	prctl(PR_SET_NAME, "pause");
	syscall(SYS_close_range, skiff_told + 1, ~0U, 0);

	const unsigned long inert = MS_NOSUID | MS_NODEV | MS_NOEXEC;
	skiff_step("leave the mount namespace", unshare(CLONE_NEWNS));
	skiff_step("make mounts private", mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	skiff_step("mount an empty file system", mount("pause", "/proc", "tmpfs", inert, "size=4k,mode=0555"));
	skiff_step("go there", chdir("/proc"));
	skiff_step("change the root", syscall(SYS_pivot_root, ".", "."));
	skiff_step("unmount the old root", umount2(".", MNT_DETACH));
	skiff_step("go to the root", chdir("/"));
	skiff_step("make it read-only", mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY | inert, NULL));

	for (int c = 0; prctl(PR_CAPBSET_READ, c, 0, 0, 0) >= 0; c++)
		skiff_step("drop a capability", prctl(PR_CAPBSET_DROP, c, 0, 0, 0));
	skiff_step("leave the groups", setgroups(0, NULL));
	skiff_step("change the group", setgid(skiff_nobody));
	skiff_step("change the user", setuid(skiff_nobody));
	skiff_step("forbid new privileges", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	skiff_step("forbid core dumps", prctl(PR_SET_DUMPABLE, 0, 0, 0, 0));
	skiff_step("forbid system calls", skiff_pause_filter());
	skiff_step("tell", write(skiff_told, "ready", 5));
	close(skiff_told);
	for (;;)
		pause();
}
*/
import "C"
