package core

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// What else is sent through pods/resize is dropped, and a real change counts.
func TestResizeKeepsTheRest(t *testing.T) {
	old := parse[corev1.Pod](t, `{metadata: {generation: 3, labels: {a: b}}, spec: {nodeName: here, containers: [{name: a, image: i, resources: {requests: {cpu: 1}}}]}, status: {phase: Running}}`)
	sent := parse[corev1.Pod](t, `{metadata: {generation: 9, labels: {c: d}}, spec: {nodeName: there, containers: [{name: a, image: j, resources: {requests: {cpu: 2}}}]}, status: {phase: Failed}}`)
	resizeUpdate{}.PrepareForUpdate(t.Context(), sent, old)
	c := sent.Spec.Containers[0]
	if sent.Generation != 4 || sent.Labels["a"] != "b" || sent.Spec.NodeName != "here" || sent.Status.Phase != corev1.PodRunning || c.Image != "i" || c.Resources.Requests.Cpu().String() != "2" {
		t.Errorf("%+v", sent)
	}
	same := old.DeepCopy()
	same.Spec.Containers[0].Image = "k"
	resizeUpdate{}.PrepareForUpdate(t.Context(), same, old)
	if same.Generation != 3 {
		t.Errorf("generation %d", same.Generation)
	}
}
