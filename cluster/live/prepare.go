package live

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// Values brings sealed values into the form of this state, see seal.Foreign.
type Values interface {
	Value(ctx context.Context, key string, stored []byte) ([]byte, error)
}

// Source is the snapshot, read twice. It was verified before.
type Source interface {
	io.Reader
	Rewind() error
}

// ErrForeign says that a snapshot is of another cluster.
var ErrForeign = errors.New("the snapshot is of another cluster")

// Config of a Preparation.
type Config struct {
	Now       *store.View // the state of the cluster
	ClusterID string
	// Sealed gets what the snapshot has of skiff's own keys.
	Sealed func(own map[string][]byte) (Values, error)
}

// Pod is one that a restore concerns.
type Pod struct {
	Namespace string    `json:"namespace"`
	Name      string    `json:"name"`
	UID       types.UID `json:"uid"`
	Node      string    `json:"node,omitempty"`
}

// Pods says what becomes of the pods.
type Pods struct {
	Stay  []Pod `json:"stay"`  // run on
	Stop  []Pod `json:"stop"`  // run, and are not in the snapshot
	Start []Pod `json:"start"` // are in the snapshot and do not run
	Ended []Pod `json:"ended"` // had not ended in the snapshot, and have ended since: they stay ended
}

// preparation is one under way.
type preparation struct {
	Config
	values   Values
	before   map[types.UID]bool // pods of the snapshot, and whether they had not ended
	services map[string]bool    // of the snapshot, by namespace/name
	slices   []*store.KeyValue  // of the present that stay, by key
	pods     Pods
}

// Prepare writes to dst what a restore of src has to bring, without what the
// cluster keeps.
func Prepare(ctx context.Context, src Source, dst io.Writer, c Config) (*Pods, error) {
	p := &preparation{Config: c, before: map[types.UID]bool{}, services: map[string]bool{}}
	if err := p.survey(ctx, src); err != nil {
		return nil, err
	}
	if err := p.present(); err != nil {
		return nil, err
	}
	if err := src.Rewind(); err != nil {
		return nil, err
	}
	if err := p.write(ctx, src, dst); err != nil {
		return nil, err
	}
	return &p.pods, nil
}

// each reads all of a snapshot.
func each(ctx context.Context, r *fsm.Reader, do func(*store.KeyValue) error) error {
	for n := 0; ; n++ {
		kv, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = do(kv)
		}
		if n%1024 == 0 {
			err = errors.Join(err, ctx.Err())
		}
		if err != nil {
			return err
		}
	}
}

// survey learns what is in the snapshot.
func (p *preparation) survey(ctx context.Context, src io.Reader) error {
	r, err := fsm.NewReader(src)
	if err != nil {
		return err
	}
	if id := r.Header().ClusterID; id != p.ClusterID {
		return fmt.Errorf("%w: %s, and this one is %s", ErrForeign, id, p.ClusterID)
	}
	own := map[string][]byte{}
	err = each(ctx, r, func(kv *store.KeyValue) error {
		switch {
		case strings.HasPrefix(kv.Key, ownPrefix):
			own[kv.Key] = kv.Value
		case strings.HasPrefix(kv.Key, podPrefix):
			pod, err := decode[corev1.Pod](kv)
			if err != nil {
				return err
			}
			p.before[pod.UID] = runs(pod)
		case strings.HasPrefix(kv.Key, servicePrefix):
			p.services[strings.TrimPrefix(kv.Key, servicePrefix)] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	if p.values, err = p.Sealed(own); err != nil {
		return fmt.Errorf("open what is sealed in the snapshot: %w", err)
	}
	return nil
}

// present decides what stays of the present state.
func (p *preparation) present() (err error) {
	p.Now.Ascend(podPrefix, "", func(kv *store.KeyValue) bool {
		var pod *corev1.Pod
		if pod, err = decode[corev1.Pod](kv); err != nil {
			return false
		}
		switch ran, was := p.before[pod.UID]; {
		case !was && runs(pod) && pod.Spec.NodeName != "":
			p.pods.Stop = append(p.pods.Stop, ref(pod))
		case was && runs(pod):
			p.pods.Stay = append(p.pods.Stay, ref(pod))
		case was && ran:
			p.pods.Ended = append(p.pods.Ended, ref(pod))
		}
		return true
	})
	p.Now.Ascend(slicePrefix, "", func(kv *store.KeyValue) bool {
		if err != nil {
			return false
		}
		kv, err = p.slice(kv)
		if kv != nil {
			p.slices = append(p.slices, kv)
		}
		return err == nil
	})
	return err
}

// slice gives what stays of a slice of the present, nil for those that do not
// count: the snapshot's do.
func (p *preparation) slice(kv *store.KeyValue) (*store.KeyValue, error) {
	s, err := decode[discoveryv1.EndpointSlice](kv)
	if err != nil {
		return nil, err
	}
	if !kept(s.Labels[discoveryv1.LabelManagedBy]) && !ofAPI(s.Namespace, s.Labels[discoveryv1.LabelServiceName]) ||
		!p.services[s.Namespace+"/"+s.Labels[discoveryv1.LabelServiceName]] {
		return nil, nil
	}
	var stay []discoveryv1.Endpoint
	for _, e := range s.Endpoints {
		was := true
		if e.TargetRef != nil && e.TargetRef.Kind == "Pod" {
			_, was = p.before[e.TargetRef.UID]
		}
		if was {
			stay = append(stay, e)
		}
	}
	if len(stay) == len(s.Endpoints) {
		return kv, nil
	}
	s.Endpoints = stay
	return encode(kv, s)
}

// write copies the snapshot with what was decided.
func (p *preparation) write(ctx context.Context, src io.Reader, dst io.Writer) error {
	r, err := fsm.NewReader(src)
	if err != nil {
		return err
	}
	w, err := fsm.NewWriter(dst, r.Header())
	if err != nil {
		return err
	}
	rev := r.Header().Revision
	add := func(kv *store.KeyValue) error {
		if kv.ModRevision > rev || kv.CreateRevision > rev { // of the present
			kv = &store.KeyValue{Key: kv.Key, Value: kv.Value, CreateRevision: min(kv.CreateRevision, rev), ModRevision: rev, Expires: kv.Expires}
		}
		return w.Add(kv)
	}
	slices, last := p.slices, ""
	upTo := func(key string) error { // writes slices of the present
		for len(slices) > 0 && (key == "" || slices[0].Key <= key) {
			if err := add(slices[0]); err != nil {
				return err
			}
			last, slices = slices[0].Key, slices[1:]
		}
		return nil
	}
	err = each(ctx, r, func(kv *store.KeyValue) error {
		if err := upTo(kv.Key); err != nil || kv.Key == last {
			return err
		}
		kv, err := p.object(ctx, kv)
		if err != nil || kv == nil {
			return err
		}
		return add(kv)
	})
	if err == nil {
		err = upTo("")
	}
	if err != nil {
		return err
	}
	return w.Close()
}

// object gives the form of an object of the snapshot in the present; nil if it is
// left out.
func (p *preparation) object(ctx context.Context, kv *store.KeyValue) (*store.KeyValue, error) {
	switch {
	case strings.HasPrefix(kv.Key, reservedPrefix):
		return kv, nil
	case strings.HasPrefix(kv.Key, ownPrefix), strings.HasPrefix(kv.Key, nodePrefix):
		return nil, nil
	case strings.HasPrefix(kv.Key, slicePrefix):
		s, err := decode[discoveryv1.EndpointSlice](kv)
		if err != nil || kept(s.Labels[discoveryv1.LabelManagedBy]) {
			return nil, err
		}
		return kv, nil
	case strings.HasPrefix(kv.Key, endpointPrefix):
		return p.endpoints(kv)
	case strings.HasPrefix(kv.Key, podPrefix):
		return p.pod(kv)
	}
	v, err := p.values.Value(ctx, kv.Key, kv.Value)
	if err != nil {
		return nil, err
	}
	return &store.KeyValue{Key: kv.Key, Value: v, CreateRevision: kv.CreateRevision, ModRevision: kv.ModRevision, Expires: kv.Expires}, nil
}
