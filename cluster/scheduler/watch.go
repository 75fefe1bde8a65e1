package scheduler

import (
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/client-go/tools/cache"

	"github.com/skiff-sh/skiff/cluster/localpath"
)

// watch registers the handlers that keep state and queue in step with the API.
func (s *Scheduler) watch() error {
	core := s.cfg.Informers.Core().V1()
	if err := handle(s, core.Nodes().Informer(), s.nodeChanged); err != nil {
		return fmt.Errorf("watch nodes: %w", err)
	}
	if err := handle(s, core.Pods().Informer(), s.podChanged); err != nil {
		return fmt.Errorf("watch pods: %w", err)
	}
	if err := handle(s, core.Namespaces().Informer(), s.namespaceChanged); err != nil {
		return fmt.Errorf("watch namespaces: %w", err)
	}
	if err := handle(s, core.PersistentVolumeClaims().Informer(), func(_, _ *corev1.PersistentVolumeClaim) { s.volumesChanged() }); err != nil {
		return fmt.Errorf("watch claims: %w", err)
	}
	if err := handle(s, core.PersistentVolumes().Informer(), func(_, _ *corev1.PersistentVolume) { s.volumesChanged() }); err != nil {
		return fmt.Errorf("watch volumes: %w", err)
	}
	if err := handle(s, s.cfg.Informers.Storage().V1().StorageClasses().Informer(), func(_, _ *storagev1.StorageClass) { s.volumesChanged() }); err != nil {
		return fmt.Errorf("watch storage classes: %w", err)
	}
	return nil
}

// volumesChanged lets those look again that wait for claims, volumes or classes.
func (s *Scheduler) volumesChanged() {
	s.queue.move(volumeChanged)
	s.state.volumes.poke()
}

// handle calls on with nil as old for additions and as cur for deletions.
func handle[T any](s *Scheduler, inf cache.SharedIndexInformer, on func(old, cur *T)) error {
	reg, err := inf.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(obj any) {
			if cur, ok := obj.(*T); ok {
				on(nil, cur)
			}
		},
		UpdateFunc: func(before, after any) {
			old, ok := before.(*T)
			cur, also := after.(*T)
			if ok && also {
				on(old, cur)
			}
		},
		DeleteFunc: func(obj any) {
			if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = gone.Obj
			}
			if old, ok := obj.(*T); ok {
				on(old, nil)
			}
		},
	})
	if err != nil {
		return err
	}
	s.handlers = append(s.handlers, reg.HasSyncedChecker())
	return nil
}

func (s *Scheduler) nodeChanged(old, cur *corev1.Node) {
	if cur == nil {
		s.state.removeNode(old.Name)
		s.state.volumes.poke() // some may be waited for there
		// Fewer domains may make a spread constraint hold that did not before.
		s.queue.move(nodeLabels)
		return
	}
	e := nodeEvent(old, cur)
	if e == 0 {
		return // heartbeats, conditions, images: nothing that is looked at
	}
	s.state.setNode(cur)
	s.queue.move(e)
}

// nodeEvent tells what about a node has changed.
func nodeEvent(old, cur *corev1.Node) event {
	if old == nil {
		return nodeAdded
	}
	var e event
	if old.Spec.Unschedulable != cur.Spec.Unschedulable || !equality.Semantic.DeepEqual(old.Spec.Taints, cur.Spec.Taints) {
		e |= nodeTaints
	}
	if !maps.Equal(old.Labels, cur.Labels) {
		e |= nodeLabels
	}
	if !equality.Semantic.DeepEqual(old.Status.Allocatable, cur.Status.Allocatable) ||
		old.Annotations[localpath.RootAnnotation] != cur.Annotations[localpath.RootAnnotation] ||
		old.Annotations[localpath.CapacityAnnotation] != cur.Annotations[localpath.CapacityAnnotation] {
		e |= nodeResources
	}
	return e
}

func (s *Scheduler) podChanged(old, cur *corev1.Pod) {
	switch {
	case cur == nil:
		s.podLeft(old)
	case old != nil && old.UID != cur.UID:
		s.podLeft(old)
		s.podChanged(nil, cur)
	case finished(cur):
		s.podLeft(cur)
	case cur.Spec.NodeName != "":
		s.queue.drop(cur.UID)
		s.queue.move(s.state.setPod(cur))
	case cur.DeletionTimestamp != nil || cur.Spec.SchedulerName != s.cfg.Name:
		s.queue.drop(cur.UID)
		s.state.volumes.poke() // it may wait for some
	default:
		changed := old == nil || podNeedsChanged(old, cur)
		if s.state.isAssumed(cur.UID) {
			s.queue.renew(cur, changed)
			return
		}
		s.queue.put(cur, changed)
	}
}

func (s *Scheduler) podLeft(pod *corev1.Pod) {
	s.queue.drop(pod.UID)
	s.state.volumes.poke()
	if s.state.removePod(pod.UID) {
		s.queue.move(podGone)
	}
}

// podNeedsChanged tells whether a pod without node asks for something else now.
func podNeedsChanged(old, cur *corev1.Pod) bool {
	return !maps.Equal(old.Labels, cur.Labels) || !equality.Semantic.DeepEqual(old.Spec, cur.Spec)
}

func finished(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

func (s *Scheduler) namespaceChanged(old, cur *corev1.Namespace) {
	if old == nil || cur == nil || !maps.Equal(old.Labels, cur.Labels) {
		s.queue.move(namespaceLabels)
	}
}
