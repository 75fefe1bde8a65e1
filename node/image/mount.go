package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// maxMountData is what fits into mount(2)'s data page.
const maxMountData = 4095

func checkKey(key string) error {
	if key == "" || len(key) > 200 || strings.HasPrefix(key, ".") ||
		strings.Trim(key, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._") != "" {
		return fmt.Errorf("%q does not serve as the key of a root file system", key)
	}
	return nil
}

// Mount makes a writable root file system of an image for a container key
// (such as its ID) and returns its path. Mounting a key again returns the same.
func (s *Store) Mount(ctx context.Context, imageID, key string) (rootfs string, err error) {
	if err := checkKey(key); err != nil {
		return "", err
	}
	if err := ctx.Err(); err != nil {
		return "", err
	}
	unlock, err := s.shared()
	if err != nil {
		return "", err
	}
	defer unlock()
	idx, err := s.read()
	if err != nil {
		return "", err
	}
	img := idx.find(imageID)
	if img == nil {
		return "", fmt.Errorf("mount: %w: %s", ErrNotFound, imageID)
	}
	dir := s.path("mounts", key)
	rootfs = filepath.Join(dir, "rootfs")
	if b, err := os.ReadFile(filepath.Join(dir, "image")); err == nil && isOverlay(rootfs) {
		if string(b) != img.ID {
			return "", fmt.Errorf("mount: %s is mounted already, from image %s", key, b)
		}
		return rootfs, nil
	}
	if err := s.makeMount(img, dir); err != nil {
		return "", fmt.Errorf("mount a root file system of image %s: %w", imageID, errors.Join(err, os.RemoveAll(dir)))
	}
	s.noteUse(img.ID)
	return rootfs, nil
}

func (s *Store) makeMount(img *Image, dir string) error {
	if err := os.RemoveAll(dir); err != nil { // an interrupted attempt
		return err
	}
	for _, d := range []string{"upper", "work", "rootfs"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	// The directory of the container's own root decides how it looks.
	if err := os.WriteFile(filepath.Join(dir, "image"), []byte(img.ID), 0o644); err != nil {
		return err
	}
	if err := makeDirs(filepath.Join(dir, "upper"), img.Dirs); err != nil {
		return err
	}
	var lower, names []string // topmost first
	for i := len(img.Layers) - 1; i >= 0; i-- {
		names = append(names, layerName(img.Layers[i]))
		lower = append(lower, s.path("layers", layerName(img.Layers[i]), "fs"))
	}
	if err := os.WriteFile(filepath.Join(dir, "layers"), []byte(strings.Join(names, "\n")), 0o644); err != nil {
		return err
	}
	if len(lower) == 0 {
		p := s.path("layers", emptyLayer, "fs")
		if err := os.MkdirAll(p, 0o755); err != nil {
			return err
		}
		lower = []string{p}
	}
	return overlay(lower, filepath.Join(dir, "upper"), filepath.Join(dir, "work"), filepath.Join(dir, "rootfs"))
}

// overlay mounts a writable overlay. What is written is thrown away with the
// container, so it is never waited for to reach the disk ("volatile").
func overlay(lower []string, upper, work, target string) error {
	err := overlayNew(lower, upper, work, target)
	if err == nil {
		return nil
	}
	// Before Linux 6.5 layers cannot be given one by one.
	if oerr := overlayOld(lower, upper, work, target); oerr != nil {
		if errors.Is(oerr, unix.EINVAL) && isOverlay(filepath.Dir(upper)) {
			return fmt.Errorf("the data directory is itself on an overlay file system, on which no other can be mounted: choose a --data-dir on a disk: %w", oerr)
		}
		if errors.Is(oerr, unix.ENODEV) {
			return fmt.Errorf("the kernel has no overlay file system (modprobe overlay): %w", oerr)
		}
		return fmt.Errorf("overlay: %w (new mount interface: %w)", oerr, err)
	}
	return nil
}

func overlayNew(lower []string, upper, work, target string) error {
	fd, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	set := func(key, value string) error {
		if err := unix.FsconfigSetString(fd, key, value); err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		return nil
	}
	for _, l := range lower {
		short, release, err := shortPath(l, 255)
		if err != nil {
			return err
		}
		err = set("lowerdir+", short)
		release()
		if err != nil {
			return err
		}
	}
	up, release, err := shortPath(upper, 255)
	if err != nil {
		return err
	}
	defer release()
	wk, release2, err := shortPath(work, 255)
	if err != nil {
		return err
	}
	defer release2()
	if err := errors.Join(set("source", "skiff"), set("upperdir", up), set("workdir", wk)); err != nil {
		return err
	}
	if err := unix.FsconfigSetFlag(fd, "volatile"); err != nil {
		return err
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return err
	}
	mfd, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(mfd)
	return unix.MoveMount(mfd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

// shortPath returns the path, or when it is longer than limit a way to it
// through a file descriptor.
func shortPath(p string, limit int) (string, func(), error) {
	if len(p) <= limit {
		return p, func() {}, nil
	}
	fd, err := unix.Open(p, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, &os.PathError{Op: "open", Path: p, Err: err}
	}
	return "/proc/self/fd/" + strconv.Itoa(fd), func() { unix.Close(fd) }, nil
}

var escapeLower = strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`)

func overlayOld(lower []string, upper, work, target string) error {
	data := func(lower []string) string {
		return "lowerdir=" + strings.Join(lower, ":") + ",upperdir=" + escapeLower.Replace(upper) + ",workdir=" + escapeLower.Replace(work)
	}
	escaped := make([]string, len(lower))
	for i, l := range lower {
		escaped[i] = escapeLower.Replace(l)
	}
	opts := data(escaped)
	if len(opts) > maxMountData {
		for i, l := range lower {
			short, release, err := shortPath(l, 0)
			if err != nil {
				return err
			}
			defer release()
			escaped[i] = short
		}
		if opts = data(escaped); len(opts) > maxMountData {
			return fmt.Errorf("%d layers are too many for this kernel", len(lower))
		}
	}
	err := unix.Mount("skiff", target, "overlay", 0, opts+",volatile")
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount("skiff", target, "overlay", 0, opts)
	}
	return err
}

func isOverlay(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.OVERLAYFS_SUPER_MAGIC
}

// isMountPoint says whether something is mounted at exactly this path.
func isMountPoint(path string) bool {
	var st, parent unix.Stat_t
	return unix.Lstat(path, &st) == nil && unix.Lstat(filepath.Dir(path), &parent) == nil && st.Dev != parent.Dev
}

// Unmount removes a key's root file system with all that was written to it.
// No error when there is none.
func (s *Store) Unmount(key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	dir := s.path("mounts", key)
	if id, err := os.ReadFile(filepath.Join(dir, "image")); err == nil {
		s.noteUse(string(id))
	}
	rootfs := filepath.Join(dir, "rootfs")
	for isMountPoint(rootfs) {
		if err := unix.Unmount(rootfs, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", rootfs, err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove the root file system of %s: %w", key, err)
	}
	return nil
}

// Mounts returns the keys that have a root file system.
func (s *Store) Mounts() ([]string, error) {
	ents, err := os.ReadDir(s.path("mounts"))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range ents {
		out = append(out, e.Name())
	}
	return out, nil
}

// Mounted returns where a key's root file system is, if it is mounted.
func (s *Store) Mounted(key string) (rootfs string, ok bool) {
	rootfs = s.path("mounts", key, "rootfs")
	return rootfs, checkKey(key) == nil && isOverlay(rootfs) && isMountPoint(rootfs)
}

// users returns the keys that are mounted from an image.
func (s *Store) users(id string) []string {
	keys, err := s.Mounts()
	if err != nil {
		return nil
	}
	var out []string
	for _, k := range keys {
		if b, err := os.ReadFile(s.path("mounts", k, "image")); err == nil && string(b) == id {
			out = append(out, k)
		}
	}
	return out
}

// sweepMounts removes what is left of root file systems that are not mounted
// any more: the machine was restarted, or a mount was interrupted. Only the
// owner may do so, since other processes may not see its mounts.
func (s *Store) sweepMounts() error {
	keys, err := s.Mounts()
	if err != nil {
		return err
	}
	var errs []error
	for _, k := range keys {
		if !isMountPoint(s.path("mounts", k, "rootfs")) {
			errs = append(errs, os.RemoveAll(s.path("mounts", k)))
		}
	}
	return errors.Join(errs...)
}

// MountUsage returns how many bytes and inodes were written to a key's root
// file system.
func (s *Store) MountUsage(key string) (bytes, inodes int64, err error) {
	if err := checkKey(key); err != nil {
		return 0, 0, err
	}
	seen := map[uint64]bool{}
	err = filepath.WalkDir(s.path("mounts", key, "upper"), func(_ string, e fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return nil // it vanished
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok || seen[st.Ino] {
			return nil
		}
		seen[st.Ino] = true
		bytes += st.Blocks * 512
		inodes++
		return nil
	})
	return bytes, inodes, err
}
