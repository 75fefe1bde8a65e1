package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// program is the node's own skiff, which it may replace when the cluster is
// upgraded.
func (p place) program(node string) string { return p.nodeFile(node, filepath.Join("bin", "skiff")) }

// install makes binary the node's program, in one step; what runs goes on as it
// is.
func (p place) install(node, binary string) error {
	path := p.program(node)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	next := fmt.Sprintf("%s.%d", path, os.Getpid())
	err := os.Link(binary, next)
	if err != nil { // another disk
		err = copyProgram(binary, next)
	}
	if err == nil {
		err = os.Rename(next, path)
	}
	if err != nil {
		return fmt.Errorf("program of %s: %w", node, errors.Join(err, os.RemoveAll(next)))
	}
	return os.RemoveAll(next) // two names of one file are not renamed
}

func copyProgram(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// ownProgram installs what the cluster was made with on a node that has none.
func (p place) ownProgram(s *state, node string) error {
	if _, err := os.Stat(p.program(node)); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return p.install(node, s.Binary)
}

// Program is the path of a node's own skiff.
func (c *Cluster) Program(node string) string { return c.p.program(node) }

// Install makes binary the program of a node. The one that runs goes on until
// it is started anew.
func (c *Cluster) Install(ctx context.Context, node, binary string) error {
	if st, err := os.Stat(binary); err != nil || st.IsDir() || st.Mode()&0o111 == 0 {
		return fmt.Errorf("%s is no program: %v", binary, err)
	}
	return c.change(ctx, func(s *state) error {
		if _, err := s.node(node); err != nil {
			return err
		}
		return c.p.install(node, binary)
	})
}

// successor finds the skiff of a node that another process than ours started
// in place of the last one, as when a member puts its old program back.
func (p place) successor(node string) (process, error) {
	pids, err := p.inCgroups(node)
	if err != nil {
		return process{}, err
	}
	for _, pid := range pids {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
		if err != nil {
			continue // it has ended
		}
		args := strings.Split(string(b), "\x00")
		if len(args) < 2 || args[1] != "server" && args[1] != "agent" || !strings.Contains(string(b), "\x00--data-dir\x00"+p.nodeFile(node, "data")+"\x00") {
			continue
		}
		if proc, st, err := findProcess(pid); err == nil && st != 'Z' && st != 'X' {
			return proc, nil
		}
	}
	return process{}, unix.ESRCH
}
