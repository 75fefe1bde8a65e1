package cluster

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/skiff-sh/skiff/cluster/auth"
	"github.com/skiff-sh/skiff/cluster/registry/allocator"
	"github.com/skiff-sh/skiff/cluster/registry/core"
	"github.com/skiff-sh/skiff/cluster/storage"
	"github.com/skiff-sh/skiff/fsm"
	"github.com/skiff-sh/skiff/fsm/store"
)

// namespaces exist in every cluster. The last one to be made tells that the
// foundation is laid.
var namespaces = []string{"kube-system", "kube-public", "kube-node-lease", "default"}

const foundationKey = storage.KeyPrefix + "/namespaces/default"

// duties are what the leader does beside controllers and scheduler.
func (s *Server) duties() ([]Duty, error) {
	config := s.api.LoopbackClientConfig()
	config.UserAgent = "skiff-leader"
	typed := rest.CopyConfig(config)
	typed.ContentType = "application/vnd.kubernetes.protobuf"
	client, err := kubernetes.NewForConfig(typed)
	if err != nil {
		return nil, fmt.Errorf("client of the leader: %w", err)
	}
	shared := informers.NewSharedInformerFactory(client, 0)
	aggregation, err := auth.NewAggregation(client, shared, s.cfg.Logger)
	if err != nil {
		return nil, err
	}
	return []Duty{
		{Name: "expiry", Run: s.backend.Expire},
		{Name: "removals", Run: s.members.FinishRemovals},
		{Name: "api-endpoints", Run: func(ctx context.Context) error { return s.keepEndpoints(ctx, client) }},
		{Name: "encryption", Run: s.sealer.Duty},
		{Name: "keys", Run: s.trust.Duty},
		{Name: "upgrade", Run: s.upgrades.Duty},
		{Name: "foundation", Run: func(ctx context.Context) error { return s.layFoundation(ctx, client) }},
		{Name: "cluster-role-aggregation", Run: func(ctx context.Context) error {
			if err := s.awaitFoundation(ctx); err != nil {
				return err
			}
			shared.StartWithContext(ctx)
			defer shared.Shutdown()
			return aggregation.Run(ctx)
		}},
	}, nil
}

// layFoundation makes what every cluster has from the start and brings it up to
// date: identity and keys in the replicated state, namespaces, services of the
// API and of DNS, default roles. What fails is tried again: it must not end the
// other duties.
func (s *Server) layFoundation(ctx context.Context, client kubernetes.Interface) error {
	s.untilDone(ctx, "identity of the cluster", s.replicateIdentity)
	s.untilDone(ctx, "settings of the cluster", s.replicateSettings)
	s.untilDone(ctx, "reservations of services", func(ctx context.Context) error {
		return core.RepairServices(ctx, func(ctx context.Context) ([]corev1.Service, error) {
			list, err := client.CoreV1().Services(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
			if err != nil {
				return nil, err
			}
			return list.Items, nil
		}, allocator.New(s.node, s.state), s.cfg.Logger)
	})
	s.untilDone(ctx, "namespaces", func(ctx context.Context) error {
		for _, name := range namespaces {
			if err := ensure(ctx, client.CoreV1().Namespaces(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
				return fmt.Errorf("namespace %s: %w", name, err)
			}
		}
		return nil
	})
	after := s.state.Revision() // what is deleted from now on is noticed
	var parts sync.WaitGroup
	for name, part := range map[string]func(context.Context, kubernetes.Interface) error{
		"default roles":         auth.Reconcile,
		"default storage class": s.ensureStorageClass,
		"built-in services":     s.ensureServices,
	} {
		parts.Go(func() {
			s.untilDone(ctx, name, func(ctx context.Context) error { return part(ctx, client) })
		})
	}
	parts.Wait()
	var kept sync.WaitGroup
	defer kept.Wait()
	kept.Go(func() { s.keepClientCA(ctx, client) })
	return s.keepServices(ctx, client, after)
}

// keepServices makes the built-in services anew when somebody deletes one after
// the given revision.
func (s *Server) keepServices(ctx context.Context, client kubernetes.Interface, after int64) error {
	w := s.state.Watch(servicesPrefix, after)
	for {
		events, _, err := w.Next(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil: // fell behind: what was deleted meanwhile is unknown
			w = s.state.Watch(servicesPrefix, s.state.Revision())
		case !slices.ContainsFunc(events, deletesBuiltIn):
			continue
		}
		s.untilDone(ctx, "built-in services", func(ctx context.Context) error { return s.ensureServices(ctx, client) })
	}
}

const servicesPrefix = storage.KeyPrefix + "/services/"

func deletesBuiltIn(e *store.Event) bool {
	return e.KV == nil && (e.Key == servicesPrefix+"default/kubernetes" || e.Key == servicesPrefix+"kube-system/kube-dns")
}

const (
	foundationRetry    = 100 * time.Millisecond
	foundationRetryMax = 30 * time.Second
)

// untilDone tries part until it succeeds or ctx ends.
func (s *Server) untilDone(ctx context.Context, name string, part func(context.Context) error) {
	for pause := foundationRetry; ctx.Err() == nil; pause = min(2*pause, foundationRetryMax) {
		err := part(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		s.cfg.Logger.Warn("the cluster's foundation is incomplete, will try again", "part", name, "error", err, "in", pause)
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// replicateIdentity gives a new cluster its ID.
func (s *Server) replicateIdentity(ctx context.Context) error {
	if s.node.Stats().ClusterID != "" {
		return nil
	}
	id := fsm.Configuration{ClusterID: strings.ToLower(rand.Text())}
	r, err := s.node.Propose(ctx, fsm.Command{Configuration: &id})
	if err != nil {
		return fmt.Errorf("give the cluster an id: %w", err)
	}
	if r.Err != nil && !errors.Is(r.Err, store.ErrExists) {
		return fmt.Errorf("give the cluster an id: %w", r.Err)
	}
	return nil
}

// creator is the part of a typed client that ensure needs.
type creator[T any] interface {
	Get(ctx context.Context, name string, o metav1.GetOptions) (T, error)
	Create(ctx context.Context, obj T, o metav1.CreateOptions) (T, error)
}

// ensure creates obj unless there is one of its name.
func ensure[T metav1.Object](ctx context.Context, c creator[T], obj T) error {
	_, err := c.Get(ctx, obj.GetName(), metav1.GetOptions{ResourceVersion: "0"})
	if !apierrors.IsNotFound(err) {
		return err
	}
	_, err = c.Create(ctx, obj, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// awaitFoundation returns when the namespaces are there, on whichever server
// leads.
func (s *Server) awaitFoundation(ctx context.Context) error {
	after := s.state.Revision()
	if _, ok := s.state.View().Get(foundationKey); ok {
		return nil
	}
	for w := s.state.Watch(foundationKey, after); ; {
		if _, _, err := w.Next(ctx); err != nil && ctx.Err() != nil {
			return ctx.Err()
		}
		if _, ok := s.state.View().Get(foundationKey); ok {
			return nil
		}
	}
}

// ensureClientCA publishes the CA of client certificates, as extension API
// servers expect it.
func (s *Server) ensureClientCA(ctx context.Context, client kubernetes.Interface) error {
	want := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "extension-apiserver-authentication", Namespace: "kube-system"},
		Data:       map[string]string{"client-ca-file": string(s.pki.Bundle())},
	}
	maps := client.CoreV1().ConfigMaps("kube-system")
	have, err := maps.Get(ctx, want.Name, metav1.GetOptions{ResourceVersion: "0"})
	switch {
	case apierrors.IsNotFound(err):
		_, err = maps.Create(ctx, want, metav1.CreateOptions{})
	case err == nil && have.Data["client-ca-file"] != want.Data["client-ca-file"]:
		have = have.DeepCopy()
		if have.Data == nil {
			have.Data = map[string]string{}
		}
		have.Data["client-ca-file"] = want.Data["client-ca-file"]
		_, err = maps.Update(ctx, have, metav1.UpdateOptions{})
	}
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("publish the client CA: %w", err)
	}
	return nil
}

// keepClientCA publishes the CAs anew when others are trusted.
func (s *Server) keepClientCA(ctx context.Context, client kubernetes.Interface) {
	changes, cancel := s.trust.Changes()
	defer cancel()
	for ctx.Err() == nil {
		s.untilDone(ctx, "client CA in the API", func(ctx context.Context) error { return s.ensureClientCA(ctx, client) })
		select {
		case <-changes:
		case <-ctx.Done():
		}
	}
}
