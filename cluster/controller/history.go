package controller

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/client-go/kubernetes"
	appslisters "k8s.io/client-go/listers/apps/v1"
)

// RevisionLabel names the revision of a pod and of its ControllerRevision.
const RevisionLabel = appsv1.ControllerRevisionHashLabelKey

// History keeps the ControllerRevisions of a DaemonSet or StatefulSet: one for
// each pod template it has had, holding a patch that brings the template back
// (kubectl rollout undo applies it).
type History struct {
	Client    kubernetes.Interface
	Revisions appslisters.ControllerRevisionLister
	// Kind is that of the owners.
	Kind schema.GroupVersionKind
	// StillThere reads an owner afresh; see Claim.
	StillThere func(ctx context.Context, namespace, name string) (types.UID, bool, error)
}

// ErrCollision reports that two templates have the same hash: the owner's
// collision count has to grow.
var ErrCollision = errors.New("revision name is taken by another template")

// Of returns owner's revisions in order, adopting and releasing as needed.
func (h History) Of(ctx context.Context, owner metav1.Object, selector labels.Selector) ([]*appsv1.ControllerRevision, error) {
	all, err := h.Revisions.ControllerRevisions(owner.GetNamespace()).List(labels.Everything())
	if err != nil {
		return nil, fmt.Errorf("list revisions: %w", err)
	}
	claim := Claim[*appsv1.ControllerRevision]{
		Owner: owner, Kind: h.Kind, Selector: selector,
		StillThere: func(ctx context.Context) (types.UID, bool, error) {
			return h.StillThere(ctx, owner.GetNamespace(), owner.GetName())
		},
		Patch: func(ctx context.Context, r *appsv1.ControllerRevision, patch []byte) error {
			_, err := h.Client.AppsV1().ControllerRevisions(r.Namespace).Patch(ctx, r.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
			return err
		},
	}
	held, err := claim.Of(ctx, all)
	if err != nil {
		return nil, fmt.Errorf("claim revisions of %s %s/%s: %w", h.Kind.Kind, owner.GetNamespace(), owner.GetName(), err)
	}
	slices.SortFunc(held, func(a, b *appsv1.ControllerRevision) int {
		return cmp.Or(cmp.Compare(a.Revision, b.Revision), a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	return held, nil
}

// Current returns the revision of template, which is the newest then: it is
// created, or numbered anew if the owner has gone back to it. history is what Of
// returned; the new history comes back too.
func (h History) Current(ctx context.Context, owner metav1.Object, template *corev1.PodTemplateSpec, collisions *int32, history []*appsv1.ControllerRevision) (*appsv1.ControllerRevision, []*appsv1.ControllerRevision, error) {
	data, err := revisionData(template)
	if err != nil {
		return nil, nil, err
	}
	next := int64(1)
	if n := len(history); n > 0 {
		next = history[n-1].Revision + 1
	}
	for i := len(history) - 1; i >= 0; i-- {
		r := history[i]
		if !sameData(r.Data.Raw, data) {
			continue
		}
		if i == len(history)-1 {
			return r, history, nil
		}
		changed := r.DeepCopy()
		changed.Revision = next
		saved, err := h.Client.AppsV1().ControllerRevisions(r.Namespace).Update(ctx, changed, metav1.UpdateOptions{})
		if err != nil {
			return nil, nil, fmt.Errorf("renumber revision %s/%s: %w", r.Namespace, r.Name, err)
		}
		return saved, append(slices.Delete(slices.Clone(history), i, i+1), saved), nil
	}
	made, err := h.create(ctx, owner, template, data, next, collisions)
	if err != nil {
		return nil, nil, err
	}
	return made, append(slices.Clone(history), made), nil
}

func (h History) create(ctx context.Context, owner metav1.Object, template *corev1.PodTemplateSpec, data []byte, number int64, collisions *int32) (*appsv1.ControllerRevision, error) {
	hash := hashOf(data, collisions)
	r := &appsv1.ControllerRevision{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: owner.GetNamespace(), Name: owner.GetName() + "-" + hash,
			Labels:          map[string]string{RevisionLabel: hash},
			Annotations:     changeCause(owner),
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(owner, h.Kind)},
		},
		Data:     runtime.RawExtension{Raw: data},
		Revision: number,
	}
	for k, v := range template.Labels {
		r.Labels[k] = v
	}
	r.Labels[RevisionLabel] = hash
	made, err := h.Client.AppsV1().ControllerRevisions(r.Namespace).Create(ctx, r, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		if err != nil {
			return nil, fmt.Errorf("create revision %s/%s: %w", r.Namespace, r.Name, err)
		}
		return made, nil
	}
	there, err := h.Client.AppsV1().ControllerRevisions(r.Namespace).Get(ctx, r.Name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("read revision %s/%s: %w", r.Namespace, r.Name, err)
	}
	if sameData(there.Data.Raw, data) && metav1.IsControlledBy(there, owner) {
		return there, nil // the cache was behind
	}
	return nil, fmt.Errorf("revision %s/%s: %w", r.Namespace, r.Name, ErrCollision)
}

// Prune deletes the oldest of more than limit revisions that are not in use;
// inUse holds their hashes or names.
func (h History) Prune(ctx context.Context, history []*appsv1.ControllerRevision, limit *int32, inUse map[string]bool) error {
	if limit == nil {
		return nil
	}
	var unused []*appsv1.ControllerRevision
	for _, r := range history {
		if !inUse[r.Labels[RevisionLabel]] && !inUse[r.Name] {
			unused = append(unused, r)
		}
	}
	var errs []error
	for i := range max(0, len(unused)-int(*limit)) {
		err := h.Client.AppsV1().ControllerRevisions(unused[i].Namespace).Delete(ctx, unused[i].Name, metav1.DeleteOptions{
			Preconditions: metav1.NewUIDPreconditions(string(unused[i].UID))})
		if err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("delete revision %s/%s: %w", unused[i].Namespace, unused[i].Name, err))
		}
	}
	return errors.Join(errs...)
}

// TemplateOf reads the pod template that a revision holds.
func TemplateOf(r *appsv1.ControllerRevision) (*corev1.PodTemplateSpec, error) {
	var patch struct {
		Spec struct {
			Template corev1.PodTemplateSpec `json:"template"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(r.Data.Raw, &patch); err != nil {
		return nil, fmt.Errorf("read revision %s/%s: %w", r.Namespace, r.Name, err)
	}
	return &patch.Spec.Template, nil
}

// revisionData is the patch that a revision holds.
func revisionData(template *corev1.PodTemplateSpec) ([]byte, error) {
	raw, err := json.Marshal(template)
	if err != nil {
		return nil, fmt.Errorf("encode pod template: %w", err)
	}
	var fields map[string]any
	if err := json.Unmarshal(raw, &fields); err != nil {
		return nil, fmt.Errorf("encode pod template: %w", err)
	}
	fields["$patch"] = "replace"
	data, err := json.Marshal(map[string]any{"spec": map[string]any{"template": fields}})
	if err != nil {
		return nil, fmt.Errorf("encode pod template: %w", err)
	}
	return data, nil
}

// sameData compares patches by content: the API may store them reformatted.
func sameData(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	canonical := func(raw []byte) []byte {
		var v any
		if err := json.Unmarshal(raw, &v); err != nil {
			return raw
		}
		out, err := json.Marshal(v)
		if err != nil {
			return raw
		}
		return out
	}
	return bytes.Equal(canonical(a), canonical(b))
}

func hashOf(data []byte, collisions *int32) string {
	h := fnv.New32a()
	_, _ = h.Write(data) // never fails
	if collisions != nil {
		_, _ = h.Write(binary.LittleEndian.AppendUint32(nil, uint32(*collisions)))
	}
	return rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10))
}

// changeCause hands down what kubectl rollout history shows.
func changeCause(owner metav1.Object) map[string]string {
	const key = "kubernetes.io/change-cause"
	if v, ok := owner.GetAnnotations()[key]; ok {
		return map[string]string{key: v}
	}
	return nil
}
