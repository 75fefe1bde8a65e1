package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/skiff-sh/skiff/node/unmount"
)

// What a node tells the provisioner in the annotations of its Node object.
const (
	AnnotationLocalPath     = "skiff.sh/local-path"          // folder of the node's own volumes
	AnnotationLocalCapacity = "skiff.sh/local-path-capacity" // bytes of the file system it lies on
)

const (
	annotationProvisioner = "pv.kubernetes.io/provisioned-by"
	provisionerName       = "skiff.sh/local-path"

	// trashPrefix begins the names of directories that are being deleted. No
	// PersistentVolume can be called so.
	trashPrefix = ".deleted-"
)

// Local is the folder of this node in which the volumes of the local-path
// provisioner lie, one directory for each PersistentVolume, named as it is.
// Safe for concurrent use.
type Local struct {
	root string
	log  *slog.Logger
	wg   sync.WaitGroup
}

// NewLocal makes the folder and goes on with deletions that were interrupted.
func NewLocal(root string, log *slog.Logger) (*Local, error) {
	if !filepath.IsAbs(root) || filepath.Clean(root) == "/" {
		return nil, fmt.Errorf("folder of local volumes %q: want an absolute path other than /", root)
	}
	l := &Local{root: filepath.Clean(root), log: log}
	if err := os.MkdirAll(l.root, 0o711); err != nil {
		return nil, fmt.Errorf("folder of local volumes: %w", err)
	}
	entries, err := os.ReadDir(l.root)
	if err != nil {
		return nil, fmt.Errorf("folder of local volumes: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), trashPrefix) {
			l.empty(filepath.Join(l.root, e.Name()))
		}
	}
	return l, nil
}

// Root is where the volumes lie.
func (l *Local) Root() string { return l.root }

// Capacity is the size in bytes of the file system with the volumes; 0 when it
// cannot be told.
func (l *Local) Capacity() int64 {
	var st unix.Statfs_t
	if err := unix.Statfs(l.root, &st); err != nil {
		return 0
	}
	return int64(st.Blocks) * st.Bsize
}

// Wait awaits the deletions under way. Those that a stop interrupts are taken up
// by the next NewLocal.
func (l *Local) Wait() { l.wg.Wait() }

// owns says that path is the directory of a volume here.
func (l *Local) owns(path string) bool {
	return l != nil && filepath.Dir(filepath.Clean(path)) == l.root && checkPVName(filepath.Base(path)) == nil
}

// make creates a volume's directory, for everybody to write to, unless it is
// there. What a crash leaves of it is removed as a deletion that was interrupted.
func (l *Local) make(path string) error {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	tmp, err := os.MkdirTemp(l.root, trashPrefix)
	if err != nil {
		return err
	}
	if err = os.Chmod(tmp, 0o777); err == nil { // whatever the umask is
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
	}
	return err
}

// delete takes a volume's directory away at once and frees its space in the
// background. No error when there is none.
func (l *Local) delete(name string) error {
	path := filepath.Join(l.root, name)
	trash, err := os.MkdirTemp(l.root, trashPrefix)
	if err != nil {
		return err
	}
	if err := os.Rename(path, filepath.Join(trash, name)); err != nil {
		_ = os.Remove(trash)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	l.empty(trash)
	return nil
}

// empty removes a directory in the background. What a container has mounted
// below it is somebody's data: it is unmounted first, or nothing is removed.
func (l *Local) empty(dir string) {
	l.wg.Go(func() {
		err := unmount.Below(dir)
		if err == nil {
			err = os.RemoveAll(dir)
		}
		if err != nil {
			l.log.Warn("deleting a local volume, the next start tries again", "dir", dir, "err", err)
		}
	})
}

func checkPVName(name string) error {
	if msgs := validation.IsDNS1123Subdomain(name); len(msgs) > 0 {
		return fmt.Errorf("%q is %w: %s", name, ErrBadName, msgs[0])
	}
	return nil
}

// Errors of DeleteLocal; compare with errors.Is.
var (
	ErrInUse   = errors.New("the volume is in use") // by a pod of this node
	ErrBadName = errors.New("no name of a PersistentVolume")
)

// DeleteLocal deletes a local volume and all that is in it. No error when there
// is none; ErrInUse while a pod has it.
func (m *Manager) DeleteLocal(pv string) error {
	l := m.cfg.Local
	if l == nil {
		return errors.New("this node keeps no local volumes")
	}
	if err := checkPVName(pv); err != nil {
		return err
	}
	m.claims.Lock()
	defer m.claims.Unlock()
	users, err := m.users(pv)
	if err != nil {
		return fmt.Errorf("finding out who uses volume %s: %w", pv, err)
	}
	if len(users) > 0 {
		return fmt.Errorf("%w: pod %s has it mounted", ErrInUse, users[0].Pod)
	}
	if err := l.delete(pv); err != nil {
		return fmt.Errorf("deleting volume %s: %w", pv, err)
	}
	return nil
}
