package pod

import (
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/skiff-sh/skiff/node/objects"
	"github.com/skiff-sh/skiff/node/volume"
)

// accept decides whether this node runs the pod at all.
func (w *worker) accept() bool {
	if p := w.pod.Status.Phase; p == v1.PodSucceeded || p == v1.PodFailed {
		w.frozen = true
		w.move(Stopped)
		return false
	}
	if errs := Refused(w.pod); len(errs) > 0 {
		w.refused = errs.ToAggregate().Error()
		w.eventPod(v1.EventTypeWarning, "UnsupportedField", "This node can't run the pod: %s", w.refused)
		for _, c := range w.ctrs {
			c.wait("CreateContainerConfigError", w.refused)
		}
		w.move(Preparing)
		return false
	}
	if w.sandbox == nil { // else it was admitted by an earlier agent
		reason, msg := pressed(w.pod, w.m.pressure())
		if reason == "" {
			reason, msg = w.admit()
		}
		if reason != "" {
			w.m.cfg.Meter.Rejected(reason)
			w.eventPod(v1.EventTypeWarning, reason, "%s", msg)
			w.end = ending{reason: reason, message: "Pod was rejected: " + msg}
			w.rejected = true
			w.move(Stopped)
			return false
		}
	}
	w.m.grants.adopt(w.pod)
	w.hold()
	lost := w.sandbox != nil && !w.sandbox.Alive() // only what is left of it was found
	if (lost || w.sandbox == nil && w.ranSomewhere()) && !w.beginAgain() {
		return false
	}
	w.move(Preparing)
	return true
}

// ranSomewhere says that the pod had a sandbox, which is gone.
func (w *worker) ranSomewhere() bool {
	return slices.ContainsFunc(w.ctrs, func(c *container) bool { return c.ended != nil && c.role != roleEphemeral })
}

// hold has the objects watched that the pod refers to.
func (w *worker) hold() {
	w.release = w.m.cfg.Objects.Hold(references(w.pod), func() {
		w.mu.Lock()
		w.dirty["volumes"] = true
		w.mu.Unlock()
		w.changes.Add(1)
		w.poke()
	})
}

// references are the objects that the pod's node may read.
func references(p *v1.Pod) []objects.Ref {
	seen := map[objects.Ref]bool{}
	var out []objects.Ref
	add := func(k objects.Kind, name string) {
		r := objects.Ref{Kind: k, Namespace: p.Namespace, Name: name}
		if name != "" && !seen[r] {
			seen[r] = true
			out = append(out, r)
		}
	}
	for _, s := range p.Spec.ImagePullSecrets {
		add(objects.Secret, s.Name)
	}
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		add(objects.Claim, volume.ClaimName(p, v))
		if v.ConfigMap != nil {
			add(objects.ConfigMap, v.ConfigMap.Name)
		}
		if v.Secret != nil {
			add(objects.Secret, v.Secret.SecretName)
		}
		if v.Projected == nil {
			continue
		}
		for _, s := range v.Projected.Sources {
			if s.ConfigMap != nil {
				add(objects.ConfigMap, s.ConfigMap.Name)
			}
			if s.Secret != nil {
				add(objects.Secret, s.Secret.Name)
			}
		}
	}
	env := func(c *v1.Container) {
		for _, f := range c.EnvFrom {
			if f.ConfigMapRef != nil {
				add(objects.ConfigMap, f.ConfigMapRef.Name)
			}
			if f.SecretRef != nil {
				add(objects.Secret, f.SecretRef.Name)
			}
		}
		for _, e := range c.Env {
			if e.ValueFrom == nil {
				continue
			}
			if e.ValueFrom.ConfigMapKeyRef != nil {
				add(objects.ConfigMap, e.ValueFrom.ConfigMapKeyRef.Name)
			}
			if e.ValueFrom.SecretKeyRef != nil {
				add(objects.Secret, e.ValueFrom.SecretKeyRef.Name)
			}
		}
	}
	for i := range p.Spec.InitContainers {
		env(&p.Spec.InitContainers[i])
	}
	for i := range p.Spec.Containers {
		env(&p.Spec.Containers[i])
	}
	for i := range p.Spec.EphemeralContainers {
		env(ephemeralSpec(p, i))
	}
	return out
}
