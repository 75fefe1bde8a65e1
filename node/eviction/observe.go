package eviction

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Sources is where a node measures its signals.
type Sources struct {
	NodeDir  string // on the file system of logs and volumes
	ImageDir string // on that of images and containers' writable layers
	// Pods returns the working set of all pods together and their limit, in bytes; a
	// limit of 0 is none. Nil where they have no cgroup of their own.
	Pods func() (workingSet, limit int64, err error)
	Proc string // "/proc" when empty

	statfs func(string, *unix.Statfs_t) error // unix.Statfs, unless a test says otherwise
}

// Separate says whether images have a file system of their own.
func (s *Sources) Separate() bool {
	var a, b unix.Stat_t
	return unix.Stat(s.NodeDir, &a) == nil && unix.Stat(s.ImageDir, &b) == nil && a.Dev != b.Dev
}

// Observe measures what can be measured; the error tells of the rest.
func (s *Sources) Observe() (Observations, error) {
	out := Observations{}
	var errs []error
	note := func(sig Signal, o Observation, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", sig, err))
		} else if o.Capacity > 0 {
			out[sig] = o
		}
	}
	mem, err := s.memory()
	note(MemoryAvailable, mem, err)
	if s.Pods != nil {
		used, limit, err := s.Pods()
		note(PodsMemory, Observation{Available: max(0, limit-used), Capacity: limit}, err)
	}
	space, files, err := s.files(s.NodeDir)
	note(NodeFsAvailable, space, err)
	note(NodeFsInodesFree, files, err)
	space, files, err = s.files(s.ImageDir)
	note(ImageFsAvailable, space, err)
	note(ImageFsInodesFree, files, err)
	p, err := s.processes()
	note(PIDAvailable, p, err)
	return out, errors.Join(errs...)
}

func (s *Sources) proc(name string) string {
	if s.Proc == "" {
		return filepath.Join("/proc", name)
	}
	return filepath.Join(s.Proc, name)
}

// memory is what the kernel says can be had without swapping. kubelet takes the whole
// page cache that is in use for used, and evicts pods for it though it could be had.
func (s *Sources) memory() (o Observation, err error) {
	b, err := os.ReadFile(s.proc("meminfo"))
	if err != nil {
		return o, err
	}
	sc := bufio.NewScanner(bytes.NewReader(b))
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) < 2 || f[0] != "MemTotal:" && f[0] != "MemAvailable:" {
			continue
		}
		n, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			return o, fmt.Errorf("%s %w", f[0], err)
		}
		if f[0] == "MemTotal:" {
			o.Capacity = n << 10
		} else {
			o.Available = n << 10
		}
	}
	return o, nil
}

func (s *Sources) files(dir string) (space, inodes Observation, err error) {
	statfs := s.statfs
	if statfs == nil {
		statfs = unix.Statfs
	}
	var fs unix.Statfs_t
	if err := statfs(dir, &fs); err != nil {
		return space, inodes, fmt.Errorf("statfs %s: %w", dir, err)
	}
	space = Observation{int64(fs.Bavail) * fs.Bsize, int64(fs.Blocks) * fs.Bsize}
	return space, Observation{int64(fs.Ffree), int64(fs.Files)}, nil // no inodes, no limit: btrfs
}

// processes counts threads, as the kernel's limits do.
func (s *Sources) processes() (o Observation, err error) {
	b, err := os.ReadFile(s.proc("loadavg")) // "0.1 0.2 0.3 1/234 5678": 234 exist
	if err != nil {
		return o, err
	}
	f := strings.Fields(string(b))
	if len(f) < 4 {
		return o, fmt.Errorf("%s reads %q", s.proc("loadavg"), b)
	}
	_, count, _ := strings.Cut(f[3], "/")
	n, err := strconv.ParseInt(count, 10, 64)
	if err != nil {
		return o, err
	}
	for _, name := range []string{"sys/kernel/pid_max", "sys/kernel/threads-max"} {
		b, err := os.ReadFile(s.proc(name))
		if err != nil {
			return o, err
		}
		most, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
		if err != nil {
			return o, err
		}
		if o.Capacity == 0 || most < o.Capacity {
			o.Capacity = most
		}
	}
	o.Available = max(0, o.Capacity-n)
	return o, nil
}
