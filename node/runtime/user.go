package runtime

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxUserFile bounds /etc/passwd and /etc/group of an image.
const maxUserFile = 4 << 20

// openInRoot opens a file as a process would that has root as its root
// directory: no symbolic link leads outside.
func openInRoot(root, path string) (*os.File, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		f.Close()
		return nil, &os.PathError{Op: "open", Path: path, Err: errors.Join(err, errors.New("not a regular file"))}
	}
	return f, nil
}

// userFile opens one of the image's user databases; a missing one is empty.
func userFile(root, path string) (io.Reader, func(), error) {
	f, err := openInRoot(root, path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return strings.NewReader(""), func() {}, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read the image's /%s: %w", path, err)
	}
	return io.LimitReader(f, maxUserFile), func() { f.Close() }, nil
}

// resolveUser turns names into numbers, by the image's own databases.
func resolveUser(rootfs string, u User) (specs.User, error) {
	passwd, closePasswd, err := userFile(rootfs, "etc/passwd")
	if err != nil {
		return specs.User{}, err
	}
	defer closePasswd()
	group, closeGroup, err := userFile(rootfs, "etc/group")
	if err != nil {
		return specs.User{}, err
	}
	defer closeGroup()

	name, groupName, hasGroup := strings.Cut(u.Name, ":")
	if u.UID != nil {
		name, hasGroup = strconv.FormatInt(*u.UID, 10), false
	}
	// Without a group in the argument, the user's memberships are returned too.
	eu, err := user.GetExecUser(name, nil, passwd, group)
	if err != nil {
		return specs.User{}, err
	}
	gid, extra := int64(eu.Gid), eu.Sgids
	if hasGroup && groupName != "" {
		group2, closeGroup2, err := userFile(rootfs, "etc/group")
		if err != nil {
			return specs.User{}, err
		}
		defer closeGroup2()
		eg, err := user.GetExecUser("0:"+groupName, nil, nil, group2)
		if err != nil {
			return specs.User{}, err
		}
		gid = int64(eg.Gid)
	}
	if u.GID != nil {
		gid = *u.GID
	}
	if u.OnlySupplementalGroups {
		extra = nil
	}
	groups := []int64{gid}
	for _, g := range extra {
		groups = append(groups, int64(g))
	}
	groups = append(groups, u.SupplementalGroups...)

	out := specs.User{UID: uint32(eu.Uid), GID: uint32(gid)}
	for _, g := range groups {
		if g < 0 || g > 1<<32-2 {
			return specs.User{}, fmt.Errorf("group %d is out of range", g)
		}
		if !slices.Contains(out.AdditionalGids, uint32(g)) {
			out.AdditionalGids = append(out.AdditionalGids, uint32(g))
		}
	}
	return out, nil
}
