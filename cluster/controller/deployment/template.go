package deployment

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"maps"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/rand"

	appsv1 "k8s.io/api/apps/v1"
)

// hashLabel tells the pods of different templates apart.
const hashLabel = appsv1.DefaultDeploymentUniqueLabelKey

// templateHash names a template. It is taken of the JSON form, where fields that
// are not set do not show, so that new releases of the API leave it as it is.
// collisions, if any, make it a different one.
func templateHash(t *corev1.PodTemplateSpec, collisions *int32) (string, error) {
	data, err := json.Marshal(t)
	if err != nil {
		return "", fmt.Errorf("hash pod template: %w", err)
	}
	h := fnv.New32a()
	_, _ = h.Write(data) // never fails
	if collisions != nil {
		_, _ = h.Write(binary.LittleEndian.AppendUint32(nil, uint32(*collisions)))
	}
	return rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10)), nil
}

// sameTemplate compares templates without the label that tells them apart.
func sameTemplate(a, b *corev1.PodTemplateSpec) bool {
	return equality.Semantic.DeepEqual(withoutHash(a), withoutHash(b))
}

func withoutHash(t *corev1.PodTemplateSpec) *corev1.PodTemplateSpec {
	if _, ok := t.Labels[hashLabel]; !ok {
		return t
	}
	out := *t
	out.Labels = maps.Clone(t.Labels)
	delete(out.Labels, hashLabel)
	return &out
}

// withHash returns labels with the hash added.
func withHash(labels map[string]string, hash string) map[string]string {
	out := maps.Clone(labels)
	if out == nil {
		out = map[string]string{}
	}
	out[hashLabel] = hash
	return out
}

// selectorWithHash narrows a selector to one template.
func selectorWithHash(s *metav1.LabelSelector, hash string) *metav1.LabelSelector {
	out := s.DeepCopy()
	out.MatchLabels = withHash(out.MatchLabels, hash)
	return out
}
