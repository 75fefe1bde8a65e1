package controller

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/component-helpers/storage/ephemeral"
)

// podsByClaim is the index that PodsWithClaim reads: namespace/claim.
const podsByClaim = "skiff/claim"

// ClaimNames gives the claims that a pod's volumes name, those of its ephemeral
// volumes included.
func ClaimNames(pod *corev1.Pod) []string {
	var names []string
	for i := range pod.Spec.Volumes {
		switch v := &pod.Spec.Volumes[i]; {
		case v.PersistentVolumeClaim != nil:
			names = append(names, v.PersistentVolumeClaim.ClaimName)
		case v.Ephemeral != nil:
			names = append(names, ephemeral.VolumeClaimName(pod, v))
		}
	}
	return names
}

// IndexPodsByClaim adds the index that PodsWithClaim needs. Several controllers
// may ask for it on one informer.
func IndexPodsByClaim(inf cache.SharedIndexInformer) error {
	if _, ok := inf.GetIndexer().GetIndexers()[podsByClaim]; ok {
		return nil
	}
	err := inf.AddIndexers(cache.Indexers{podsByClaim: func(obj any) ([]string, error) {
		pod, ok := obj.(*corev1.Pod)
		if !ok {
			return nil, nil
		}
		names := ClaimNames(pod)
		for i := range names {
			names[i] = Key(pod.Namespace, names[i])
		}
		return names, nil
	}})
	if err != nil {
		return fmt.Errorf("index pods by %s: %w", podsByClaim, err)
	}
	return nil
}

// PodsWithClaim returns the cached pods that name a claim, by their names.
func PodsWithClaim(inf cache.SharedIndexInformer, namespace, claim string) []*corev1.Pod {
	return podsAt(inf, podsByClaim, Key(namespace, claim))
}
