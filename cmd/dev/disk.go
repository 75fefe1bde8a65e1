package dev

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Requests of linux/fs.h and linux/loop.h that x/sys does not name.
const (
	fiFreeze        = 0xc0045877
	fiThaw          = 0xc0045878
	loopReadWrite   = 0
	loopAutoclear   = 4
	loopDirectIO    = 16
	loopNameLen     = 64
	loopControlPath = "/dev/loop-control"
)

// checkDisks says what is missing for disks of the nodes' own.
func checkDisks() error {
	if _, err := os.Stat(loopControlPath); err != nil {
		return fmt.Errorf("no loop devices on this machine (%w): load the module (modprobe loop), or share one disk with --plain-disks", err)
	}
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		return errors.New("mkfs.ext4 is missing: install e2fsprogs, or share one disk with --plain-disks")
	}
	return nil
}

// makeImage makes an ext4 file system in a sparse file.
func makeImage(ctx context.Context, path string, size int64) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("disk image: %w", err)
	}
	err = errors.Join(f.Truncate(size), f.Close())
	if err != nil {
		return fmt.Errorf("disk image %s: %w", path, err)
	}
	// No room is kept for root, so that full is full.
	out, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,nodiscard", path).CombinedOutput()
	if err != nil {
		return fmt.Errorf("mkfs.ext4 %s: %w: %s", path, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// attach makes a loop device of the image. It goes away by itself with its last
// user: the mount, once the caller has closed it.
func attach(image string) (*os.File, error) {
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("disk image: %w", err)
	}
	defer f.Close()
	control, err := os.OpenFile(loopControlPath, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("loop devices: %w", err)
	}
	defer control.Close()
	for range 100 { // others take devices too
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		device := fmt.Sprintf("/dev/loop%d", n)
		d, err := configure(device, f)
		if err == nil {
			return d, nil
		}
		if !errors.Is(err, unix.EBUSY) && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("attach %s to %s: %w", image, device, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return nil, fmt.Errorf("attach %s: no loop device is free", image)
}

func configure(device string, f *os.File) (*os.File, error) {
	d, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	c := unix.LoopConfig{Fd: uint32(f.Fd())}
	c.Info.Flags = loopAutoclear | loopDirectIO
	copy(c.Info.File_name[:loopNameLen-1], f.Name())
	err = unix.IoctlLoopConfigure(int(d.Fd()), &c)
	if errors.Is(err, unix.EINVAL) { // the file system below knows no direct I/O
		c.Info.Flags = loopAutoclear
		err = unix.IoctlLoopConfigure(int(d.Fd()), &c)
	}
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// attachedTo lists the loop devices whose files are below dir.
func attachedTo(dir string) ([]string, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // just detached
		}
		if strings.HasPrefix(string(b), dir+"/") {
			out = append(out, "/dev/"+filepath.Base(filepath.Dir(filepath.Dir(f))))
		}
	}
	return out, nil
}

// kernelPatience is how long the kernel may need to let go of what nobody uses any
// more: it writes out first what is in memory, to a disk that may be slow.
const kernelPatience = time.Minute

// detachAll waits until no device uses a file below dir, and helps.
func detachAll(dir string) error {
	deadline := time.Now().Add(kernelPatience)
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		devices, err := attachedTo(dir)
		if err != nil || len(devices) == 0 {
			return err
		}
		for _, device := range devices {
			d, err := os.OpenFile(device, os.O_RDWR, 0)
			if err != nil {
				continue
			}
			// Busy ones are detached with their last user.
			_ = unix.IoctlSetInt(int(d.Fd()), unix.LOOP_CLR_FD, 0)
			d.Close()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s still use files below %s: something has them mounted", strings.Join(devices, ", "), dir)
		}
		time.Sleep(wait)
	}
}

// freeze stops every write to the file system at dir until thaw.
func freeze(dir string) error { return fsRequest(dir, fiFreeze) }

// thaw is no error where nothing is frozen.
func thaw(dir string) error {
	err := fsRequest(dir, fiThaw)
	if errors.Is(err, unix.EINVAL) {
		return nil
	}
	return err
}

func fsRequest(dir string, request uint) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.IoctlSetInt(fd, request, 0)
}
