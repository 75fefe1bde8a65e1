package apps

import (
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/skiff-sh/skiff/cluster/registry/podspec"
)

func addDefaults(s *runtime.Scheme) {
	s.AddTypeDefaultingFunc(&appsv1.Deployment{}, func(o any) { setDeployment(o.(*appsv1.Deployment)) })
	s.AddTypeDefaultingFunc(&appsv1.DeploymentList{}, func(o any) { each(o.(*appsv1.DeploymentList).Items, setDeployment) })
	s.AddTypeDefaultingFunc(&appsv1.ReplicaSet{}, func(o any) { setReplicaSet(o.(*appsv1.ReplicaSet)) })
	s.AddTypeDefaultingFunc(&appsv1.ReplicaSetList{}, func(o any) { each(o.(*appsv1.ReplicaSetList).Items, setReplicaSet) })
	s.AddTypeDefaultingFunc(&appsv1.DaemonSet{}, func(o any) { setDaemonSet(o.(*appsv1.DaemonSet)) })
	s.AddTypeDefaultingFunc(&appsv1.DaemonSetList{}, func(o any) { each(o.(*appsv1.DaemonSetList).Items, setDaemonSet) })
	s.AddTypeDefaultingFunc(&appsv1.StatefulSet{}, func(o any) { setStatefulSet(o.(*appsv1.StatefulSet)) })
	s.AddTypeDefaultingFunc(&appsv1.StatefulSetList{}, func(o any) { each(o.(*appsv1.StatefulSetList).Items, setStatefulSet) })
}

func each[T any](items []T, set func(*T)) {
	for i := range items {
		set(&items[i])
	}
}

// orElse makes *p point to a copy of value where it points nowhere.
func orElse[T any](p **T, value T) {
	if *p == nil {
		*p = &value
	}
}

func setDeployment(d *appsv1.Deployment) {
	orElse(&d.Spec.Replicas, 1)
	orElse(&d.Spec.RevisionHistoryLimit, 10)
	orElse(&d.Spec.ProgressDeadlineSeconds, 600)
	strategy := &d.Spec.Strategy
	if strategy.Type == "" {
		strategy.Type = appsv1.RollingUpdateDeploymentStrategyType
	}
	if strategy.Type == appsv1.RollingUpdateDeploymentStrategyType {
		orElse(&strategy.RollingUpdate, appsv1.RollingUpdateDeployment{})
		orElse(&strategy.RollingUpdate.MaxUnavailable, intstr.FromString("25%"))
		orElse(&strategy.RollingUpdate.MaxSurge, intstr.FromString("25%"))
	}
	podspec.SetTemplateDefaults(&d.Spec.Template)
}

func setReplicaSet(rs *appsv1.ReplicaSet) {
	orElse(&rs.Spec.Replicas, 1)
	podspec.SetTemplateDefaults(&rs.Spec.Template)
}

func setDaemonSet(ds *appsv1.DaemonSet) {
	orElse(&ds.Spec.RevisionHistoryLimit, 10)
	strategy := &ds.Spec.UpdateStrategy
	if strategy.Type == "" {
		strategy.Type = appsv1.RollingUpdateDaemonSetStrategyType
	}
	if strategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		orElse(&strategy.RollingUpdate, appsv1.RollingUpdateDaemonSet{})
		orElse(&strategy.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
		orElse(&strategy.RollingUpdate.MaxSurge, intstr.FromInt32(0))
	}
	podspec.SetTemplateDefaults(&ds.Spec.Template)
}

func setStatefulSet(s *appsv1.StatefulSet) {
	orElse(&s.Spec.Replicas, 1)
	orElse(&s.Spec.RevisionHistoryLimit, 10)
	if s.Spec.PodManagementPolicy == "" {
		s.Spec.PodManagementPolicy = appsv1.OrderedReadyPodManagement
	}
	strategy := &s.Spec.UpdateStrategy
	if strategy.Type == "" {
		strategy.Type = appsv1.RollingUpdateStatefulSetStrategyType
	}
	if strategy.Type == appsv1.RollingUpdateStatefulSetStrategyType {
		orElse(&strategy.RollingUpdate, appsv1.RollingUpdateStatefulSetStrategy{})
		orElse(&strategy.RollingUpdate.Partition, 0)
		orElse(&strategy.RollingUpdate.MaxUnavailable, intstr.FromInt32(1))
	}
	orElse(&s.Spec.PersistentVolumeClaimRetentionPolicy, appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{})
	if p := s.Spec.PersistentVolumeClaimRetentionPolicy; p.WhenDeleted == "" {
		p.WhenDeleted = appsv1.RetainPersistentVolumeClaimRetentionPolicyType
	}
	if p := s.Spec.PersistentVolumeClaimRetentionPolicy; p.WhenScaled == "" {
		p.WhenScaled = appsv1.RetainPersistentVolumeClaimRetentionPolicyType
	}
	for i := range s.Spec.VolumeClaimTemplates {
		claim := &s.Spec.VolumeClaimTemplates[i]
		// Upstream stores these two in every claim template.
		claim.APIVersion, claim.Kind = "v1", "PersistentVolumeClaim"
		podspec.SetClaimDefaults(&claim.Spec)
		if claim.Status.Phase == "" {
			claim.Status.Phase = corev1.ClaimPending
		}
	}
	podspec.SetTemplateDefaults(&s.Spec.Template)
}
