package main

import (
	"os"
	"runtime/debug"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTextMapping(t *testing.T) {
	for line, want := range map[string]bool{
		"00400000-03141000 r-xp 00000000 fe:00 131 /usr/local/bin/skiff":           true,
		"03141000-06e13000 r--p 02d41000 fe:00 131 /usr/local/bin/skiff":           true,
		"06e13000-06f58000 rw-p 06a13000 fe:00 131 /usr/local/bin/skiff":           false,
		"00400000-03141000 r-xp 00000000 fe:00 131 /usr/local/bin/skiff (deleted)": false,
		"7f0000000000-7f0000001000 r--s 00000000 fe:00 9 /var/lib/skiff/raft.db":   false,
		"c000000000-c004000000 rw-p 00000000 00:00 0 ":                             false,
		"nonsense": false,
	} {
		from, to, ok := textMapping(line, "/usr/local/bin/skiff")
		if ok != want || ok && from >= to {
			t.Errorf("%q: %x-%x, %v, want %v", line, from, to, ok, want)
		}
	}
}

func TestDropText(t *testing.T) {
	if err := dropText(); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for line := range strings.Lines(string(maps)) {
		if _, _, ok := textMapping(strings.TrimSuffix(line, "\n"), exe); ok {
			found++
		}
	}
	if found == 0 {
		t.Errorf("no mapping of %s is recognized in\n%s", exe, maps)
	}
}

func TestGCPercent(t *testing.T) {
	for live, want := range map[uint64]int{0: 1600, 20 << 20: 320, 64 << 20: 100, 1 << 30: 100} {
		if got := gcPercent(live); got != want {
			t.Errorf("%d MiB live: %d, want %d", live>>20, got, want)
		}
	}
}

func TestResident(t *testing.T) {
	debug.FreeOSMemory() // or pages that wait to be given back are counted before, and not after
	before := resident()
	b, err := unix.Mmap(-1, 0, 64<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(b) //nolint:errcheck
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	if after := resident(); before == 0 || after < before+48<<20 {
		t.Errorf("64 MiB more were %d, then %d bytes", before, after)
	}
	if b[0] != 1 {
		t.Error("lost")
	}
}

// BenchmarkSettle is what a quiet server pays for giving memory back.
func BenchmarkSettle(b *testing.B) {
	for b.Loop() {
		debug.FreeOSMemory()
		if err := dropText(); err != nil {
			b.Fatal(err)
		}
	}
}
