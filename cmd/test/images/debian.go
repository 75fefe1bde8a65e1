package main

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// unpack downloads packages with all they depend on into debs and unpacks them
// below root. The host's own packages are neither used nor changed: apt works
// on an empty status file.
func unpack(packages []string, debs, root string) error {
	if err := os.MkdirAll(filepath.Join(debs, "partial"), 0o755); err != nil {
		return err
	}
	status := filepath.Join(debs, "status")
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		return err
	}
	args := []string{"-q", "-y", "--no-install-recommends", "--download-only",
		"-o", "Dir::State::status=" + status, "-o", "Dir::Cache::archives=" + debs,
		"-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=1", "install"}
	cmd := exec.Command("apt-get", append(args, packages...)...)
	if b, err := cmd.CombinedOutput(); err != nil {
		// A machine that never ran apt-get update has no lists.
		if u, uerr := exec.Command("apt-get", "update").CombinedOutput(); uerr != nil {
			return fmt.Errorf("apt-get: %w\n%s\napt-get update: %v\n%s", err, b, uerr, u)
		}
		if b, err := exec.Command("apt-get", append(args, packages...)...).CombinedOutput(); err != nil {
			return fmt.Errorf("apt-get: %w\n%s", err, b)
		}
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return errors.New("apt-get downloaded nothing")
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	for _, f := range files {
		if b, err := exec.Command("dpkg-deb", "-x", f, root).CombinedOutput(); err != nil {
			return fmt.Errorf("unpack %s: %w\n%s", filepath.Base(f), err, b)
		}
	}
	return nil
}

const loader = "lib64/ld-linux-x86-64.so.2"

// keep copies the programs of s with their libraries, and its trees, from the
// unpacked packages to root.
func keep(s spec, from, root string) error {
	for _, p := range s.programs {
		if err := copyFile(from, root, p); err != nil {
			return err
		}
		libs, err := libraries(from, p)
		if err != nil {
			return err
		}
		for _, l := range libs {
			if err := copyFile(from, root, l); err != nil {
				return err
			}
		}
	}
	for _, t := range s.trees {
		if err := copyFile(from, root, t); err != nil {
			return err
		}
	}
	return nil
}

// libraries asks the packages' own loader what program links to; the paths are
// relative to the unpacked root. A static program has none.
func libraries(from, program string) ([]string, error) {
	if dynamic, err := hasInterpreter(filepath.Join(from, program)); err != nil || !dynamic {
		return nil, err
	}
	ld := filepath.Join(from, loader)
	var dirs []string
	for _, d := range []string{"lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"} {
		dirs = append(dirs, filepath.Join(from, d))
	}
	out, err := exec.Command(ld, "--library-path", strings.Join(dirs, ":"), "--list", filepath.Join(from, program)).Output()
	if err != nil {
		return nil, fmt.Errorf("libraries of %s: %w", program, err)
	}
	libs := []string{loader}
	for line := range strings.Lines(string(out)) {
		_, path, ok := strings.Cut(line, "=> ")
		if !ok {
			continue
		}
		path, _, _ = strings.Cut(path, " (")
		rel, err := filepath.Rel(from, strings.TrimSpace(path))
		if err != nil || strings.HasPrefix(rel, "..") {
			return nil, fmt.Errorf("%s links to %s, which no package brought", program, path)
		}
		libs = append(libs, rel)
	}
	return libs, nil
}

func hasInterpreter(program string) (bool, error) {
	f, err := elf.Open(program)
	if err != nil {
		return false, fmt.Errorf("libraries of %s: %w", program, err)
	}
	defer f.Close()
	return slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }), nil
}

// copyFile copies what rel names, following links, to the same path in root.
func copyFile(from, root, rel string) error {
	in, err := os.Open(filepath.Join(from, rel))
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	path := filepath.Join(root, rel)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	out, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, info.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
