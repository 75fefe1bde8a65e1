package binary

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/skiff-sh/skiff/cluster/upgrade/order"
)

// Platform of this host, as binaries name theirs.
const Platform = runtime.GOOS + "/" + runtime.GOARCH

// ErrNoProgram means that a file is not a skiff that runs here.
var ErrNoProgram = errors.New("not a skiff for this host")

// runPatience is how long a program may take to say its version: on a host
// without air that is many times what it needs.
const runPatience = 30 * time.Second

var machines = map[elf.Machine]string{
	elf.EM_X86_64: "linux/amd64", elf.EM_AARCH64: "linux/arm64", elf.EM_ARM: "linux/arm", elf.EM_386: "linux/386",
	elf.EM_RISCV: "linux/riscv64", elf.EM_PPC64: "linux/ppc64le", elf.EM_S390: "linux/s390x",
}

// Describe looks at a program file: what it is by its content, and what it says
// of itself. It runs the file.
func Describe(ctx context.Context, path string) (order.Binary, error) {
	var b order.Binary
	f, err := os.Open(path)
	if err != nil {
		return b, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return b, err
	}
	if !st.Mode().IsRegular() {
		return b, fmt.Errorf("%s: %w: it is no file", path, ErrNoProgram)
	}
	platform, err := checkELF(f, st.Size())
	if err != nil {
		return b, fmt.Errorf("%s: %w", path, err)
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, io.NewSectionReader(f, 0, st.Size())); err != nil {
		return b, fmt.Errorf("read %s: %w", path, err)
	}
	if platform != Platform {
		return b, fmt.Errorf("%s: %w: it is for %s, this host is %s", path, ErrNoProgram, platform, Platform)
	}
	if b, err = ask(ctx, path); err != nil {
		return b, fmt.Errorf("%s: %w", path, err)
	}
	b.SHA256, b.Size = hex.EncodeToString(hash.Sum(nil)), st.Size()
	return b, nil
}

// checkELF gives the platform of the program in r; one whose end is missing is an
// error.
func checkELF(r io.ReaderAt, size int64) (string, error) {
	f, err := elf.NewFile(io.NewSectionReader(r, 0, size))
	if err != nil {
		var format *elf.FormatError
		if magic := make([]byte, 4); !errors.As(err, &format) {
			if _, rerr := r.ReadAt(magic, 0); rerr == nil && string(magic) == elf.ELFMAG {
				return "", fmt.Errorf("%w: the program is cut short (%w)", ErrNoProgram, err)
			}
		}
		return "", fmt.Errorf("%w: it is no program (%w)", ErrNoProgram, err)
	}
	defer f.Close()
	if f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return "", fmt.Errorf("%w: it is no program (ELF type %s)", ErrNoProgram, f.Type)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_LOAD && (p.Off > uint64(size) || p.Filesz > uint64(size)-p.Off) {
			return "", fmt.Errorf("%w: the program is cut short: %d bytes of at least %d", ErrNoProgram, size, p.Off+p.Filesz)
		}
	}
	platform := machines[f.Machine]
	if platform == "" || f.Machine == elf.EM_PPC64 && f.ByteOrder.String() != "LittleEndian" {
		return "", fmt.Errorf("%w: it is for %s, this host is %s", ErrNoProgram, f.Machine, Platform)
	}
	return platform, nil
}

// ask runs `path version -o json`: a program that cannot do even this is not
// started as anything else.
func ask(ctx context.Context, path string) (order.Binary, error) {
	var b order.Binary
	path, err := filepath.Abs(path) // it runs elsewhere
	if err != nil {
		return b, err
	}
	out, err := runVersion(ctx, path)
	// Some other goroutine may just have started a process, which holds the file
	// open for writing until it has executed.
	for i := 0; errors.Is(err, unix.ETXTBSY) && i < 100; i++ {
		time.Sleep(10 * time.Millisecond)
		out, err = runVersion(ctx, path)
	}
	if err != nil {
		return b, fmt.Errorf("%w: `version -o json` of it: %w", ErrNoProgram, err)
	}
	var said struct {
		Skiff, Platform    string
		MinLevel, MaxLevel int
	}
	if err := json.Unmarshal(out, &said); err != nil || said.Skiff == "" {
		return b, fmt.Errorf("%w: `version -o json` of it prints %q", ErrNoProgram, first(out))
	}
	return order.Binary{Version: said.Skiff, Platform: said.Platform, MinLevel: said.MinLevel, MaxLevel: said.MaxLevel}, nil
}

func runVersion(ctx context.Context, path string) ([]byte, error) {
	path, err := filepath.Abs(path) // it runs in another folder, and PATH has no say
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, runPatience, fmt.Errorf("no answer within %s", runPatience))
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "version", "-o", "json")
	cmd.Args[0] = "skiff"
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/"}
	var out, errOut limited
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	if cause := context.Cause(ctx); cause != nil {
		return nil, cause
	}
	if err != nil && errOut.Len() > 0 {
		err = fmt.Errorf("%w: %s", err, first(errOut.Bytes()))
	}
	return out.Bytes(), err
}

// limited keeps the beginning of what is written to it.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	l.Buffer.Write(p[:min(len(p), max(0, 64<<10-l.Len()))])
	return len(p), nil
}

// first is the first line of a program's output, not too much of it.
func first(b []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	return line[:min(len(line), 200)]
}

// differs says in which way a program is not the one that was announced.
func differs(is, want order.Binary) error {
	for _, c := range []struct{ what, is, want string }{
		{"version", is.Version, want.Version}, {"platform", is.Platform, want.Platform},
		{"lowest feature level", fmt.Sprint(is.MinLevel), fmt.Sprint(want.MinLevel)},
		{"highest feature level", fmt.Sprint(is.MaxLevel), fmt.Sprint(want.MaxLevel)},
	} {
		if c.is != c.want {
			return fmt.Errorf("%w: its %s is %s, announced was %s", ErrNoProgram, c.what, c.is, c.want)
		}
	}
	return nil
}
