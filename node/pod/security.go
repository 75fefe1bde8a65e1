package pod

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/skiff-sh/skiff/node/image"
	"github.com/skiff-sh/skiff/node/runtime"
)

// security applies the security contexts; the container's wins over the pod's.
func (w *worker) security(cfg *runtime.ContainerConfig, c *v1.Container, img *image.Image) error {
	psc, sc := w.pod.Spec.SecurityContext, c.SecurityContext
	if psc == nil {
		psc = &v1.PodSecurityContext{}
	}
	if sc == nil {
		sc = &v1.SecurityContext{}
	}
	cfg.User = runtime.User{Name: img.Config.User, UID: firstOf(sc.RunAsUser, psc.RunAsUser), GID: firstOf(sc.RunAsGroup, psc.RunAsGroup)}
	cfg.User.SupplementalGroups = append(cfg.User.SupplementalGroups, psc.SupplementalGroups...)
	if psc.FSGroup != nil {
		cfg.User.SupplementalGroups = append(cfg.User.SupplementalGroups, *psc.FSGroup)
	}
	cfg.User.OnlySupplementalGroups = psc.SupplementalGroupsPolicy != nil && *psc.SupplementalGroupsPolicy == v1.SupplementalGroupsPolicyStrict
	cfg.Privileged = sc.Privileged != nil && *sc.Privileged
	cfg.ReadonlyRootfs = sc.ReadOnlyRootFilesystem != nil && *sc.ReadOnlyRootFilesystem
	cfg.NoNewPrivileges = sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation
	if sc.Capabilities != nil {
		for _, n := range sc.Capabilities.Add {
			cfg.Capabilities.Add = append(cfg.Capabilities.Add, string(n))
		}
		for _, n := range sc.Capabilities.Drop {
			cfg.Capabilities.Drop = append(cfg.Capabilities.Drop, string(n))
		}
	}
	if sc.ProcMount != nil && *sc.ProcMount == v1.UnmaskedProcMount {
		cfg.MaskedPaths, cfg.ReadonlyPaths = []string{}, []string{}
	}
	profile := sc.SeccompProfile
	if profile == nil {
		profile = psc.SeccompProfile
	}
	return w.seccomp(cfg, profile)
}

func (w *worker) seccomp(cfg *runtime.ContainerConfig, p *v1.SeccompProfile) error {
	if p == nil {
		if w.m.cfg.SeccompDefault {
			cfg.Seccomp.Type = runtime.SeccompRuntimeDefault
		}
		return nil
	}
	switch p.Type {
	case v1.SeccompProfileTypeRuntimeDefault:
		cfg.Seccomp.Type = runtime.SeccompRuntimeDefault
	case v1.SeccompProfileTypeLocalhost:
		if p.LocalhostProfile == nil || !filepath.IsLocal(*p.LocalhostProfile) {
			return errors.New("seccompProfile.localhostProfile must be a path below the node's seccomp directory")
		}
		doc, err := os.ReadFile(filepath.Join(w.m.cfg.DataDir, "seccomp", *p.LocalhostProfile))
		if err != nil {
			return fmt.Errorf("cannot load seccomp profile %q: %w", *p.LocalhostProfile, err)
		}
		if err := runtime.CheckSeccomp(doc); err != nil {
			return fmt.Errorf("cannot load seccomp profile %q: %w", *p.LocalhostProfile, err)
		}
		cfg.Seccomp = runtime.Seccomp{Type: runtime.SeccompLocalhost, Profile: doc}
	}
	return nil
}

func firstOf(a, b *int64) *int64 {
	if a != nil {
		return a
	}
	return b
}

// checkUser enforces runAsNonRoot.
func (w *worker) checkUser(c *container, img *image.Image, rootfs string) error {
	psc, sc := w.pod.Spec.SecurityContext, c.spec.SecurityContext
	var nonRoot *bool
	var uid *int64
	if psc != nil {
		nonRoot, uid = psc.RunAsNonRoot, psc.RunAsUser
	}
	if sc != nil {
		if sc.RunAsNonRoot != nil {
			nonRoot = sc.RunAsNonRoot
		}
		uid = firstOf(sc.RunAsUser, uid)
	}
	if nonRoot == nil || !*nonRoot {
		return nil
	}
	where := fmt.Sprintf("(pod: %q, container: %s)", describe(w.pod), c.spec.Name)
	if uid != nil {
		if *uid == 0 {
			return fmt.Errorf("container's runAsUser breaks non-root policy %s", where)
		}
		return nil
	}
	user, _, _ := strings.Cut(img.Config.User, ":")
	if user == "" {
		return fmt.Errorf("container has runAsNonRoot and image will run as root %s", where)
	}
	n, err := strconv.ParseInt(user, 10, 64)
	if err != nil {
		return fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root %s", user, where)
	}
	if n == 0 {
		return fmt.Errorf("container has runAsNonRoot and image will run as root %s", where)
	}
	return nil
}
