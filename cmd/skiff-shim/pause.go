//go:build cgo

package main

// The first process of a shared PID namespace: it reaps orphans and sleeps. It
// runs before the Go runtime starts, so it costs next to nothing.

/*
#include <signal.h>
#include <string.h>
#include <unistd.h>

static void skiff_pause_end(int sig) { _exit(0); }

__attribute__((constructor(102))) static void skiff_pause(int argc, char **argv, char **envp) {
	if (argc != 2 || strcmp(argv[1], "pause") != 0)
		return;
	signal(SIGCHLD, SIG_IGN); // the kernel reaps
	signal(SIGINT, skiff_pause_end);
	signal(SIGTERM, skiff_pause_end);
	signal(SIGHUP, SIG_IGN);
	for (;;)
		pause();
}
*/
import "C"
