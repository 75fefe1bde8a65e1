//go:build cgo && seccomp

package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/opencontainers/runc/libcontainer/specconv"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	libseccomp "github.com/seccomp/libseccomp-golang"
)

// libseccomp takes some 20 ms to turn the usual profile of 400 system calls on
// three architectures into a program, each time that a process is put under it.
// So a profile is translated once on a node, by a process for that alone; the
// program is kept, and whoever is put under the profile loads it as it is.
//
// libcontainer's own code does both. Where it asks libseccomp for the program,
// seccomp_export_bpf is wrapped by the linker: a regular file as descriptor 3 is
// the program if it is open for reading, and gets it if it is open for writing.
// Beside the program libcontainer gets a profile of the few system calls with
// the highest numbers, from which it derives what is answered ENOSYS. If the
// wrapper were missing, that profile alone would apply: nothing could run.

/*
#cgo LDFLAGS: -lseccomp -Wl,--wrap=seccomp_export_bpf
#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

int __real_seccomp_export_bpf(const void *filter, int fd);

static int skiff_copy(int from, int to) {
	char buf[4096];
	off_t at = 0;
	for (;;) {
		ssize_t n = pread(from, buf, sizeof(buf), at);
		if (n == 0)
			return at > 0 ? 0 : -EINVAL;
		if (n < 0) {
			if (errno == EINTR)
				continue;
			return -errno;
		}
		for (ssize_t done = 0; done < n;) {
			ssize_t w = write(to, buf + done, n - done);
			if (w < 0 && errno != EINTR)
				return -errno;
			if (w > 0)
				done += w;
		}
		at += n;
	}
}

int __wrap_seccomp_export_bpf(const void *filter, int fd) {
	const int file = 3;
	struct stat st;
	int flags;
	if (fstat(file, &st) < 0 || !S_ISREG(st.st_mode) || (flags = fcntl(file, F_GETFL)) < 0)
		return __real_seccomp_export_bpf(filter, fd);
	if ((flags & O_ACCMODE) != O_RDONLY) {
		int rc = __real_seccomp_export_bpf(filter, file);
		return rc < 0 ? rc : -ECANCELED; // the translator itself is not put under it
	}
	if (fcntl(file, F_SETFD, FD_CLOEXEC) < 0)
		return -errno;
	return skiff_copy(file, fd);
}
*/
import "C"

const (
	translateTimeout = 30 * time.Second
	bpfInstruction   = 8 // bytes
)

// translate is the process that translates the profile on its standard input:
// the program goes to descriptor 3, the profile to use beside it to standard
// output.
func translate() error {
	var profile specs.LinuxSeccomp
	if err := json.NewDecoder(os.Stdin).Decode(&profile); err != nil {
		return fmt.Errorf("the profile: %w", err)
	}
	config, err := specconv.SetupSeccomp(&profile)
	if err != nil {
		return err
	}
	if config == nil {
		return errors.New("the profile is empty")
	}
	beside, err := highest(config, &profile)
	if err != nil {
		return err
	}
	program := os.NewFile(translateFD, "program")
	if _, err := seccomp.InitSeccomp(config); err == nil {
		return errors.New("this program was linked without its wrapper of libseccomp")
	} else if st, serr := program.Stat(); serr != nil || st.Size() == 0 || st.Size()%bpfInstruction != 0 {
		return errors.Join(err, serr)
	}
	return json.NewEncoder(os.Stdout).Encode(beside)
}

const translateFD = 3

// highest is the profile without all rules but those of the system calls that
// have the highest number on an architecture.
func highest(config *configs.Seccomp, profile *specs.LinuxSeccomp) (*specs.LinuxSeccomp, error) {
	native, err := libseccomp.GetNativeArch()
	if err != nil {
		return nil, err
	}
	archs := []libseccomp.ScmpArch{native}
	for _, name := range config.Architectures {
		a, err := libseccomp.GetArchFromString(name)
		if err != nil {
			return nil, err
		}
		archs = append(archs, a)
	}
	last := map[string]bool{}
	for _, a := range archs {
		var number libseccomp.ScmpSyscall
		name := ""
		for _, call := range config.Syscalls {
			if n, err := libseccomp.GetSyscallFromNameByArch(call.Name, a); err == nil && n > number {
				number, name = n, call.Name
			}
		}
		last[name] = true
	}
	out := *profile
	out.Syscalls = nil
	for _, rule := range profile.Syscalls {
		rule.Names = slices.DeleteFunc(slices.Clone(rule.Names), func(n string) bool { return !last[n] })
		if len(rule.Names) > 0 {
			out.Syscalls = append(out.Syscalls, rule)
		}
	}
	return &out, nil
}

// translated is a profile's program, and the profile for libcontainer beside it.
type translated struct {
	program *os.File
	beside  *specs.LinuxSeccomp
}

// translation finds or makes the translation of a profile. Nil without an error
// means that this profile has to be translated each time.
func (s *supervisor) translation(profile *specs.LinuxSeccomp) (*translated, error) {
	if profile == nil || s.cfg.SeccompDir == "" || len(profile.Syscalls) == 0 {
		return nil, nil
	}
	if slices.ContainsFunc(profile.Syscalls, func(r specs.LinuxSyscall) bool { return r.Action == specs.ActNotify }) {
		return nil, nil
	}
	b, err := json.Marshal(profile)
	if err != nil {
		return nil, err
	}
	major, minor, micro := libseccomp.GetLibraryVersion()
	key := sha256.Sum256(append(b, fmt.Sprintf("%d.%d.%d %s", major, minor, micro, build)...))
	base := filepath.Join(s.cfg.SeccompDir, fmt.Sprintf("%x", key))
	t, err := openTranslation(base)
	if errors.Is(err, fs.ErrNotExist) {
		if err = makeTranslation(base, b); err == nil {
			t, err = openTranslation(base)
		}
	}
	return t, err
}

const (
	programFile = ".bpf"
	besideFile  = ".json"
)

// openTranslation opens what makeTranslation has made.
func openTranslation(base string) (*translated, error) {
	f, err := os.Open(base + programFile)
	if err != nil {
		return nil, err
	}
	t := &translated{program: f}
	b, err := os.ReadFile(base + besideFile)
	if err == nil {
		err = json.Unmarshal(b, &t.beside)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return t, nil
}

// makeTranslation makes the two files of a profile. The program is renamed last,
// so one that is there is whole. Several shims may do so at a time.
func makeTranslation(base string, profile []byte) error {
	if err := os.MkdirAll(filepath.Dir(base), 0o700); err != nil {
		return err
	}
	program, err := os.CreateTemp(filepath.Dir(base), "new-*")
	if err != nil {
		return err
	}
	defer os.Remove(program.Name())
	defer program.Close()
	cmd := exec.Command("/proc/self/exe", translateCommand)
	cmd.Stdin = bytes.NewReader(profile)
	cmd.ExtraFiles = []*os.File{program}
	cmd.WaitDelay = time.Second
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stop := time.AfterFunc(translateTimeout, func() { _ = cmd.Process.Kill() })
	beside, err := cmd.Output()
	stop.Stop()
	if err != nil {
		return fmt.Errorf("translate the seccomp profile: %w: %s", err, stderr.String())
	}
	temp := program.Name() + besideFile
	defer os.Remove(temp)
	if err := os.WriteFile(temp, beside, 0o600); err != nil {
		return err
	}
	if err := os.Rename(temp, base+besideFile); err != nil {
		return err
	}
	return os.Rename(program.Name(), base+programFile)
}
