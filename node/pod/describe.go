package pod

import (
	"strconv"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/node/runtime"
)

// maxMessages bounds the termination messages of all of a pod's containers
// together, in bytes.
const maxMessages = 12 << 10

// shorten cuts termination messages down to the container's share of what a
// pod may tell.
func shorten(st *v1.PodStatus) {
	n := len(st.InitContainerStatuses) + len(st.ContainerStatuses) + len(st.EphemeralContainerStatuses)
	if n == 0 {
		return
	}
	share := maxMessages / n
	for _, list := range [][]v1.ContainerStatus{st.InitContainerStatuses, st.ContainerStatuses, st.EphemeralContainerStatuses} {
		for i := range list {
			for _, s := range []*v1.ContainerState{&list[i].State, &list[i].LastTerminationState} {
				if t := s.Terminated; t != nil && len(t.Message) > share {
					s.Terminated = t.DeepCopy()
					s.Terminated.Message = strings.ToValidUTF8(t.Message[:share], "")
				}
			}
		}
	}
}

// mountStatuses are a container's volume mounts as its status shows them.
func mountStatuses(c *v1.Container) (out []v1.VolumeMountStatus) {
	for _, m := range c.VolumeMounts {
		s := v1.VolumeMountStatus{Name: m.Name, MountPath: m.MountPath, ReadOnly: m.ReadOnly}
		if m.ReadOnly {
			s.RecursiveReadOnly = ptr.To(v1.RecursiveReadOnlyDisabled)
			if r := m.RecursiveReadOnly; r != nil && *r != v1.RecursiveReadOnlyDisabled {
				s.RecursiveReadOnly = ptr.To(v1.RecursiveReadOnlyEnabled)
			}
		}
		out = append(out, s)
	}
	return out
}

// userNote is how a container's annotation keeps whom its first process runs
// as: uid:gid:group,group,…
func userNote(u runtime.Identity) string {
	groups := make([]string, 0, len(u.Groups))
	for _, g := range u.Groups {
		groups = append(groups, strconv.FormatInt(g, 10))
	}
	return strconv.FormatInt(u.UID, 10) + ":" + strconv.FormatInt(u.GID, 10) + ":" + strings.Join(groups, ",")
}

// statusUser reads userNote; nil if there is none.
func statusUser(note string) *v1.ContainerUser {
	parts := strings.Split(note, ":")
	if len(parts) != 3 {
		return nil
	}
	number := func(s string) int64 { n, _ := strconv.ParseInt(s, 10, 64); return n } // we wrote it
	u := &v1.LinuxContainerUser{UID: number(parts[0]), GID: number(parts[1])}
	for _, g := range strings.Split(parts[2], ",") {
		if g != "" {
			u.SupplementalGroups = append(u.SupplementalGroups, number(g))
		}
	}
	return &v1.ContainerUser{Linux: u}
}
