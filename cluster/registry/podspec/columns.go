package podspec

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// ContainerCells gives the CONTAINERS and IMAGES cells of a template.
func ContainerCells(containers []corev1.Container) (names, images string) {
	n, i := make([]string, 0, len(containers)), make([]string, 0, len(containers))
	for _, c := range containers {
		n, i = append(n, c.Name), append(i, c.Image)
	}
	return strings.Join(n, ","), strings.Join(i, ",")
}
