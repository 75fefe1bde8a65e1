package pod

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-sh/skiff/node/runtime"
)

const (
	orphanGrace = 10 * time.Second
	orphanRetry = 5 * time.Second
)

// adopt reconnects to sandboxes, ends those without a pod and removes files,
// mounts and addresses that belong to nobody.
func (m *Manager) adopt(ctx context.Context, pods []*v1.Pod) error {
	want := map[string]bool{}
	for _, p := range pods {
		want[string(p.UID)] = true
	}
	boxes, err := m.cfg.Runtime.Sandboxes(ctx)
	if err != nil {
		return fmt.Errorf("finding the sandboxes that are running: %w", err)
	}
	statics := m.staticUIDs()
	alive := slices.Clone(statics)
	mounts := map[string]bool{}
	var orphans []Sandbox
	for _, sb := range boxes {
		uid := sb.PodUID()
		if slices.Contains(statics, uid) { // its worker has it
			for _, c := range sb.Containers() {
				mounts[c.ID] = true
			}
			continue
		}
		if !want[uid] || !m.adopting(uid, sb) {
			orphans = append(orphans, sb)
			continue
		}
		alive = append(alive, uid)
		for _, c := range sb.Containers() {
			mounts[c.ID] = true
		}
	}
	for _, sb := range orphans {
		for _, c := range sb.Containers() {
			mounts[c.ID] = true // until it is gone
		}
		if m.waitingSandbox(sb.PodUID()) == nil {
			alive = append(alive, sb.PodUID())
		}
		m.wg.Go(func() {
			for !m.endOrphan(ctx, sb) {
				select {
				case <-ctx.Done():
					return
				case <-time.After(orphanRetry):
				}
			}
		})
	}
	if err := m.cfg.Network.Adopt(ctx, alive); err != nil {
		return fmt.Errorf("adopting pod addresses: %w", err)
	}
	m.sweep(pods, mounts)
	return nil
}

// adopting keeps a sandbox for its pod's worker; false when it has one already.
func (m *Manager) adopting(uid string, sb Sandbox) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.adopted[uid] != nil {
		return false
	}
	m.adopted[uid] = sb
	return true
}

// waitingSandbox is what was kept for the worker of a pod; nil for nothing.
func (m *Manager) waitingSandbox(uid string) Sandbox {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.adopted[uid]
}

// endOrphan stops a sandbox whose pod was deleted while no agent ran. It returns
// false when it has to be called again.
func (m *Manager) endOrphan(ctx context.Context, sb Sandbox) bool {
	cfg := sb.Config()
	log := m.cfg.Logger.With("pod", cfg.Namespace+"/"+cfg.Name, "uid", sb.PodUID())
	log.Info("removing a pod that was deleted meanwhile")
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if sb.Alive() {
		events := sb.Events(ctx)
		for _, c := range sb.Containers() {
			if c.State == runtime.Running {
				if err := sb.Signal(ctx, c.ID, syscall.SIGTERM); err != nil {
					log.Debug("asking a container to end", "err", err)
				}
			}
		}
		grace := time.NewTimer(orphanGrace)
		defer grace.Stop()
	wait:
		for anyRunning(sb) {
			select {
			case _, ok := <-events:
				if !ok {
					break wait
				}
			case <-grace.C:
				break wait
			}
		}
	}
	ids := sb.Containers()
	uid := sb.PodUID()
	if err := sb.Remove(ctx); err != nil {
		log.Warn("removing a sandbox", "err", err)
		return false
	}
	done := true
	warn := func(what string, err error) {
		if err != nil {
			log.Warn("removing what is left of a pod", "what", what, "err", err)
			done = false
		}
	}
	for _, c := range ids {
		warn("mount", m.cfg.Images.Unmount(c.ID))
	}
	if m.waitingSandbox(uid) == nil { // else only a second sandbox of a pod that lives
		warn("address", m.cfg.Network.Detach(ctx, uid))
		warn("image volumes", m.dropImageVolumes(types.UID(uid)))
		warn("volumes", m.cfg.Volumes.Teardown(uid))
	}
	return done
}

func anyRunning(sb Sandbox) bool {
	for _, c := range sb.Containers() {
		if c.State != runtime.Exited {
			return true
		}
	}
	return false
}

// sweep removes files of pods that are no more, and root file systems of
// containers that are no more.
func (m *Manager) sweep(pods []*v1.Pod, mounts map[string]bool) {
	keep, logs := map[string]bool{}, map[string]bool{}
	for _, p := range pods {
		keep[string(p.UID)] = true
		logs[logBase(p)] = true
	}
	m.keepStatics(keep, logs)
	warn := func(what string, err error) {
		if err != nil {
			m.cfg.Logger.Warn("cleaning up after pods that are gone", "what", what, "err", err)
		}
	}
	for _, uid := range m.cfg.Volumes.Pods() {
		if keep[uid] {
			continue
		}
		if err := m.cfg.Volumes.Teardown(uid); err != nil {
			warn("volumes", err)
			keep[uid] = true // something may be mounted there still: it would be deleted
		}
	}
	root := filepath.Join(m.cfg.DataDir, "pods")
	for _, name := range dirNames(root) {
		if !keep[name] {
			warn("files", os.RemoveAll(filepath.Join(root, name)))
		}
	}
	own := m.logs.OwnDir()
	for _, name := range dirNames(own) {
		if !logs[name] && strings.Count(name, "_") == 2 {
			warn("logs", os.RemoveAll(filepath.Join(own, name)))
		}
	}
	warn("logs", m.logs.Sweep(func(uid string) bool { return keep[uid] }))
	warn("records of images", m.pulls.access.sweep(func(id string) bool { _, ok := m.cfg.Images.Get(id); return ok }))
	keys, err := m.cfg.Images.Mounts()
	warn("mounts", err)
	for _, k := range keys {
		if !mounts[k] && m.leftover(k) && !m.volumeOfAdopted(k) {
			warn("mount", m.cfg.Images.Unmount(k))
		}
	}
}

func dirNames(dir string) (names []string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}
